/**
 * Domain to ASCII (UTS 46, nontransitional, as the URL Standard's section 3.3 asks for it) on the engine's own Unicode
 * tables: the mapping of UTS 46 is NFKC and lower case but for the characters named here, and what is disallowed is
 * told by general category. The tables of tr46, the package that others use, take 280 KB.
 *
 * Not checked: the Bidi rule (RFC 5893), for which the language knows no property. A name that breaks it is refused
 * by whoever resolves it.
 */
import * as punycode from "punycode/punycode.es6.js";

const ASCII = /^[\0-\x7f]*$/;
// oxlint-disable no-misleading-character-class -- they are taken one by one
/** Mapped to nothing (IdnaMappingTable, "ignored"). */
const IGNORED = /[\u00ad\u034f\u180b-\u180f\u200b\u2060\u2064\ufe00-\ufe0f\ufeff\u{1bca0}-\u{1bca3}\u{e0100}-\u{e01ef}]/gu; // prettier-ignore
/** Unassigned, private, surrogates, controls, separators, formats but for the joiners, and what else cannot be told. */
const DISALLOWED = /[\p{Cn}\p{Co}\p{Cs}\p{Cc}\p{Z}\u2ff0-\u2fff\ufff9-\ufffd\u3164\uffa0\u115f\u1160\u17b4\u17b5]|(?![\u200c\u200d\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2\u{110bd}\u{110cd}\u{13430}-\u{1343f}])\p{Cf}/u; // prettier-ignore
/** Joiners may stand after a virama (RFC 5892 A.1 and A.2), the non-joiner between letters of scripts that join. */
const JOINERS = /(?<=[\u094d\u09cd\u0a4d\u0acd\u0b4d\u0bcd\u0c4d\u0ccd\u0d3b\u0d3c\u0d4d\u0dca\u0e3a\u0f84\u1039\u103a\u1714\u1734\u17d2\u1a60\u1b44\u1baa\u1bab\u2d7f\ua806\ua8c4\ua953\ua9c0\uaaf6\uabed])[\u200c\u200d]|(?<=[\p{Script=Arabic}\p{Script=Syriac}\p{Script=Mongolian}\p{Script=Nko}]\p{M}*)\u200c(?=\p{M}*[\p{Script=Arabic}\p{Script=Syriac}\p{Script=Mongolian}\p{Script=Nko}])/gu; // prettier-ignore

/** One character at a time, because lower case depends on what stands beside (a final sigma), and the mapping does not. */
function mapCharacter(character: string): string {
  // Cherokee alone is folded to capitals.
  if (/[\u13a0-\u13ff\uab70-\uabbf]/.test(character)) return character.toUpperCase();
  const small = character.normalize("NFKC").toLowerCase().normalize("NFKC");
  if (ASCII.test(small)) return small;
  // A subscript iota is a letter in lower case.
  const parts = small.normalize("NFD");
  return parts.includes("\u0345") ? parts.replaceAll("\u0345", "\u03b9").normalize("NFC") : small;
}

function map(domain: string): string {
  let out = "";
  for (const character of domain.replace(IGNORED, "")) {
    out +=
      character === "\u3002"
        ? "."
        : ASCII.test(character)
          ? character.toLowerCase()
          : mapCharacter(character);
  }
  return out.normalize("NFC").replaceAll("\u3002", ".");
}

const isValid = (label: string): boolean =>
  label === map(label) &&
  !DISALLOWED.test(label) &&
  !/^\p{M}|[\u200c\u200d]/u.test(label.replace(JOINERS, ""));

/** Null: not a domain. Forbidden code points are the caller's to refuse. */
export function domainToASCII(domain: string): string | null {
  if (ASCII.test(domain) && !/xn--/i.test(domain)) return domain.toLowerCase();
  const labels: string[] = [];
  for (const label of map(domain).split(".")) {
    let unicode = label;
    if (label.startsWith("xn--")) {
      try {
        unicode = punycode.decode(label.slice(4));
      } catch {
        return null; // a RangeError: not Punycode
      }
      if (unicode === "" || ASCII.test(unicode)) return null;
    }
    if (!ASCII.test(unicode) && !isValid(unicode)) return null;
    labels.push(ASCII.test(unicode) ? unicode : `xn--${punycode.encode(unicode)}`);
  }
  return labels.join(".");
}
