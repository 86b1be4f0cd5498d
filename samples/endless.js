// npx doublehull run samples/endless.js --limit wallMs=200
// The deadline ends it: exit code 3.

export default () => {
  for (;;);
};
