/**
 * What a realm of V8 needs before the world is made in it: its clock is the host machine's and cannot be held still
 * from outside, and it has things that no guest gets. `v8Realm` is evaluated inside the guest's realm, like the world and
 * under the same rules: it refers to nothing outside itself but the language's globals, and saves what it will need.
 */
import type { WorldControl } from "./world.js";

/** What the engine's host side calls. As in the world's control, but nothing throws: what fails is told as a result. */
export type V8Control = Pick<WorldControl, "begin" | "fail" | "failAs" | "deliver" | "turn" | "due"> & {
  settleModule(namespace: unknown): void;
  settleScript(value: unknown): void;
};

/* oxlint-disable typescript/no-explicit-any, no-extend-native */
export function v8Realm(now: () => number): (control: WorldControl) => V8Control {
  "use strict";
  const global = globalThis as any;
  const { apply, construct, getOwnPropertyDescriptor, defineProperty } = Reflect;
  const bind = Function.prototype.call.bind(Function.prototype.bind) as (f: any) => any;
  const uncurry = (f: any) => Function.prototype.call.bind(f) as (...args: any[]) => any;

  // -- the clock: Date, and what of Intl reads it by itself -----------------------------------------------------------
  const RealDate = Date;
  const dateText = uncurry(RealDate.prototype.toString);
  const describe = (target: object, name: PropertyKey, value: unknown): void =>
    void defineProperty(target, name, { __proto__: null, value, writable: true, configurable: true, enumerable: false } as any); // prettier-ignore
  /** A function that looks like the engine's own: no source, no constructor, and the name that it has. */
  const native = (f: (...args: any[]) => any, name: string): any => {
    const bound: object = bind(f);
    defineProperty(bound, "name", { __proto__: null, value: name, writable: false, configurable: true, enumerable: false } as any); // prettier-ignore
    return bound;
  };
  describe(
    RealDate,
    "now",
    native(() => now(), "now"),
  );
  const GuestDate = new Proxy(RealDate, {
    __proto__: null,
    apply: () => dateText(new RealDate(now())),
    construct: (target: any, args: unknown[], wanted: any) =>
      construct(target, args.length === 0 ? [now()] : args, wanted) as object,
  } as any);
  describe(RealDate.prototype, "constructor", GuestDate);
  describe(global, "Date", GuestDate);
  const formats = global.Intl?.DateTimeFormat?.prototype;
  if (formats !== undefined) {
    const bound = uncurry(getOwnPropertyDescriptor(formats, "format")?.get);
    const toParts = uncurry(formats.formatToParts);
    const made = new WeakMap<object, unknown>();
    const [known, keep] = [uncurry(WeakMap.prototype.get), uncurry(WeakMap.prototype.set)];
    const later = {
      get format() {
        let f = known(made, this);
        if (f === undefined) {
          const format = bound(this);
          f = native((date: unknown) => format(date === undefined ? now() : date), "");
          keep(made, this, f);
        }
        return f;
      },
      formatToParts(date?: unknown) {
        return toParts(this, date === undefined ? now() : date);
      },
    };
    const { get } = getOwnPropertyDescriptor(later, "format") as PropertyDescriptor;
    defineProperty(formats, "format", { __proto__: null, get, configurable: true, enumerable: false } as any);
    describe(formats, "formatToParts", later.formatToParts);
  }

  // -- what a guest does not get --------------------------------------------------------------------------------------
  delete global.WebAssembly; // a compiler to machine code
  delete global.Temporal; // a clock of its own

  return (control) => {
    const { fail } = control;
    const guarded = (f: (...args: any[]) => any): any => {
      return (...args: unknown[]) => {
        try {
          return apply(f, undefined, args);
        } catch (error) {
          return fail(error);
        }
      };
    };
    return {
      begin: guarded(control.begin),
      deliver: guarded(control.deliver),
      turn: guarded(control.turn),
      due: guarded(control.due),
      fail: guarded(fail),
      failAs: guarded(control.failAs),
      settleModule: guarded(control.settleModule),
      settleScript: guarded(control.settleScript),
    };
  };
}
