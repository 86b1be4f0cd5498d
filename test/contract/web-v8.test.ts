/** Every case of the web platform's part once more, in a realm of V8. */
import { useV8 } from "../realm.js";

useV8();
await import("./web.test.js");
await import("./web-fetch.test.js");
