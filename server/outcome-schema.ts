/** Parts of an outcome as schemas, for whoever describes outcomes to others: the HTTP API, and tools of models. */
import { z } from "zod";

export const stopSchema = z.object({
  reason: z.string(),
  layer: z.string(),
  limit: z.number().optional(),
  measured: z.number().optional(),
  syscall: z.string().optional(),
  detail: z.string().optional(),
});
export const usageSchema = z.object({
  wallMs: z.number(),
  cpuMs: z.number(),
  peakMemoryBytes: z.number(),
  hostCalls: z.number(),
  bytesIn: z.number(),
  bytesOut: z.number(),
});
export const errorSchema = z.object({ name: z.string(), message: z.string(), stack: z.string() });
export const logLevelSchema = z.enum(["debug", "log", "info", "warn", "error"]);
