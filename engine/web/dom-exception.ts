/**
 * DOMException (Web IDL section 4.3): the error of the web platform, told apart by its name. An Error by inheritance,
 * so that it has a stack and crosses to the host like one.
 */
import { domString, dress, put } from "./realm.js";

/** The names that have a legacy code, in the order of their codes, from 1. Empty: no longer in use. */
const NAMES =
  "IndexSize,,HierarchyRequest,WrongDocument,InvalidCharacter,,NoModificationAllowed,NotFound,NotSupported,InUseAttribute,InvalidState,Syntax,InvalidModification,Namespace,InvalidAccess,,TypeMismatch,Security,Network,Abort,URLMismatch,QuotaExceeded,Timeout,InvalidNodeType,DataClone".split(
    ",",
  );
const CODES = new Map<string, number>();
const constants: Record<string, number> = {};
for (const [i, name] of NAMES.entries()) {
  if (name === "") continue;
  const words = name.replace(/(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])/g, "_").toUpperCase();
  CODES.set(`${name}Error`, i + 1);
  constants[`${words.replace("IN_USE", "INUSE")}_ERR`] = i + 1;
}

export class DOMException extends Error {
  #brand = true;
  constructor(message: unknown = "", options: unknown = "Error") {
    super(domString(message));
    const isDictionary = typeof options === "object" && options !== null;
    const { name = "Error", cause } = (isDictionary ? options : { name: options }) as Record<string, unknown>;
    put(this, "name", domString(name), false);
    if (isDictionary && "cause" in options) put(this, "cause", cause, false);
  }
  get code(): number {
    return CODES.get(this.name) ?? 0;
  }
  static is(value: object): value is DOMException {
    return #brand in value && value.#brand;
  }
}

export const isDOMException = DOMException.is;
Reflect.deleteProperty(DOMException, "is");

dress(DOMException, "DOMException", constants);
