// npx doublehull run samples/dice.js --grant clock=virtual --grant random=lucky
// clock and random: an hour's sleep takes no time, and the dice fall alike in every run.

export default async () => {
  const before = Date.now();
  await new Promise((resolve) => setTimeout(resolve, 3_600_000));
  const sleptMinutes = (Date.now() - before) / 60_000;
  const rolls = Array.from({ length: 8 }, () => 1 + Math.floor(Math.random() * 6));
  return { sleptMinutes, rolls };
};
