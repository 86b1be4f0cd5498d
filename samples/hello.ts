// npx doublehull run samples/hello.ts
// npx doublehull run samples/hello.ts --input '{"name":"Ada"}'

interface Input {
  name?: string;
}

interface Greeting {
  hello: string;
  letters: number;
}

export default function greet(input: Input | undefined): Greeting {
  const name: string = input?.name ?? "world";
  console.log(`greeting ${name}`);
  return { hello: name, letters: name.length };
}
