/**
 * What is evaluated in the guest's realm before any guest code, as text: each one JavaScript expression that gives a
 * function. `npm run build` makes it (engine/build.mjs): smaller, because every start reads it, and bundled, because the
 * guest's realm has no module loader.
 */

/** `codec` of engine/codec.ts. */
export const codecSource: string;
/** `world` of engine/world.ts. */
export const worldSource: string;
/** `v8Realm` of engine/v8-realm.ts. */
export const v8RealmSource: string;
/** `web` of engine/web/web.ts: the web platform's part. */
export const webSource: string;
