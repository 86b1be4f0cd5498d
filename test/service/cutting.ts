/** A network that fails at the worst moment, again and again. */
import net, { type AddressInfo, type Socket } from "node:net";

/** A proxy that cuts so many connections, each in the middle of the event after that many; or after the head. */
export async function cutting(to: string, { afterEvents, times }: { afterEvents: number; times: number }) {
  let cuts = 0;
  const sockets = new Set<Socket>();
  const server = net.createServer((near) => {
    const far = net.connect(Number(new URL(to).port), "127.0.0.1");
    for (const socket of [near, far]) {
      sockets.add(socket);
      socket.on("error", () => socket.destroy());
      socket.on("close", () => void (near.destroy(), far.destroy(), sockets.delete(socket)));
    }
    near.pipe(far);
    let text = "";
    let done = false;
    far.on("data", (chunk: Buffer) => {
      if (done) return;
      const before = text.length;
      text += chunk.toString("latin1");
      const mark = afterEvents === 0 ? "\r\n\r\n" : "event: log";
      let at = -1;
      for (let n = 0; n <= afterEvents && (n === 0 || at >= 0); n++) at = text.indexOf(mark, at + 1);
      if (at < 0 || cuts >= times) return void near.write(chunk);
      done = true;
      cuts++;
      // "event: log\ndata: {..." up to the brace; of a head all.
      const end = at + (afterEvents === 0 ? 4 : "event: log\ndata: {".length);
      near.write(chunk.subarray(0, Math.max(0, end - before)), () => near.destroy());
    });
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return {
    address: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    cuts: () => cuts,
    close() {
      for (const socket of sockets) socket.destroy();
      return new Promise((resolve) => server.close(resolve));
    },
  };
}
