/**
 * The part of isolated-vm's API that engine/v8.ts touches. Declared here, because the package is optional: without it
 * the project must compile all the same.
 */

/** What lives in another isolate. */
export interface Reference {
  applySync(self: undefined, args: readonly unknown[], options?: { result: { reference: true } }): unknown;
  getSync(name: string, options: { reference: true }): Reference;
  setSync(name: string, value: unknown): void;
  deleteSync(name: string): boolean;
  /** To be passed as an argument: arrives as the value itself. */
  derefInto(): unknown;
}

export interface Context {
  readonly global: Reference;
  release(): void;
}

export interface Module {
  /** `resolve` gives the module that `specifier` means in `referrer`. */
  instantiateSync(context: Context, resolve: (specifier: string, referrer: Module) => Module): void;
  evaluateSync(): void;
}

export interface Script {
  runSync(context: Context, options: { reference: true }): Reference;
  runSync(context: Context, options: { timeout: number }): unknown;
}

export interface Isolate {
  readonly isDisposed: boolean;
  createContextSync(): Context;
  compileScript(source: string): Promise<Script>;
  compileScriptSync(source: string, options: { filename: string }): Script;
  compileModuleSync(source: string, options: { filename: string }): Module;
}

export interface IsolatedVm {
  Isolate: new (options: { memoryLimit: number }) => Isolate;
  /** Passed as an argument it arrives as a function, whose call is one of ours with copies of the arguments. */
  Callback: new (f: (...args: unknown[]) => unknown) => object;
  ExternalCopy: new (
    value: ArrayBuffer,
    options: { transferOut: true },
  ) => {
    copyInto(options: { release: true; transferIn: true }): unknown;
  };
}
