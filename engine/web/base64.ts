/** atob and btoa (HTML section 8.3; Infra section 7, forgiving-base64). Strings of bytes, as Latin-1, on one side. */
import { DOMException } from "./dom-exception.js";
import { domString, need } from "./realm.js";

const ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const { fromCharCode } = String;
const values = new Uint8Array(128);
for (let i = 0; i < 64; i++) values[ALPHABET.charCodeAt(i)] = i;

const invalid = (message: string) => new DOMException(message, "InvalidCharacterError");

// Methods of an object, because such functions are no constructors.
export const { atob, btoa } = {
  btoa(...args: [unknown]): string {
    need(1, args, "btoa");
    const data = domString(args[0]);
    if (/[^\0-\xff]/.test(data)) {
      throw invalid("btoa: the string holds a character above U+00FF; encode it with TextEncoder first");
    }
    let out = "";
    for (let i = 0; i < data.length; i += 3) {
      // NaN past the end, which the shift takes for 0.
      const bits =
        (data.charCodeAt(i) << 16) | (data.charCodeAt(i + 1) << 8) | (data.charCodeAt(i + 2) & 0xff);
      const left = data.length - i;
      out += ALPHABET[bits >> 18] as string;
      out += ALPHABET[(bits >> 12) & 63] as string;
      out += left > 1 ? ALPHABET[(bits >> 6) & 63] : "=";
      out += left > 2 ? ALPHABET[bits & 63] : "=";
    }
    return out;
  },
  atob(...args: [unknown]): string {
    need(1, args, "atob");
    let data = domString(args[0]).replace(/[\t\n\f\r ]+/g, "");
    if (data.length % 4 === 0) data = data.replace(/==?$/, "");
    if (data.length % 4 === 1 || /[^A-Za-z0-9+/]/.test(data)) {
      throw invalid("atob: the string is not valid base64");
    }
    let out = "";
    let [bits, count] = [0, 0];
    for (let i = 0; i < data.length; i++) {
      bits = ((bits << 6) | (values[data.charCodeAt(i)] as number)) & 0xffff;
      count += 6;
      if (count >= 8) {
        count -= 8;
        out += fromCharCode((bits >> count) & 0xff);
      }
    }
    return out;
  },
};
