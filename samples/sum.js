// npx doublehull run samples/sum.js --input '{"numbers":[1,2,3]}'

export default ({ numbers }) => numbers.reduce((sum, n) => sum + n, 0);
