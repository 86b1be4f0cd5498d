/** The servers that other tests stand on: real ones, which end when they are told to. */
import { Redis } from "ioredis";
import { Client } from "pg";
import { expect, test } from "vitest";
import { describeWith, startPostgres, startRedis } from "./servers.js";

describeWith("PostgreSQL", "a PostgreSQL of the test's own", () => {
  test("answers, is gone when killed, and has what it had when started again", async () => {
    const server = await startPostgres({ durable: true });
    const url = await server.database();
    const ask = async (sql: string) => {
      const client = new Client(url);
      client.on("error", () => {}); // told by the query
      await client.connect();
      try {
        return (await client.query(sql)).rows as unknown[];
      } finally {
        await client.end();
      }
    };
    await ask("CREATE TABLE kept AS SELECT 7 AS n");
    await server.kill();
    await expect(ask("SELECT 1")).rejects.toThrow("ECONNREFUSED");
    await server.startAgain();
    expect(await ask("SELECT n FROM kept")).toEqual([{ n: 7 }]);
    await server.stop();
    await server.stop();
    await expect(ask("SELECT 1")).rejects.toThrow("ECONNREFUSED");
  });
});

describeWith("Redis", "a Redis of the test's own", () => {
  test("answers, is gone when killed, and has what it had when started again", async () => {
    const server = await startRedis({ durable: true });
    const ask = async (act: (redis: Redis) => Promise<unknown>) => {
      const redis = new Redis(server.url, { lazyConnect: true, retryStrategy: () => null });
      redis.on("error", () => {}); // told by the call
      await redis.connect();
      try {
        return await act(redis);
      } finally {
        redis.disconnect();
      }
    };
    await ask((redis) => redis.set("kept", "7"));
    await server.kill();
    await expect(ask((redis) => redis.ping())).rejects.toThrow();
    await server.startAgain();
    expect(await ask((redis) => redis.get("kept"))).toBe("7");
    await server.stop();
    await expect(ask((redis) => redis.ping())).rejects.toThrow();
  });
});
