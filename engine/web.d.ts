/**
 * The web platform's part of the guest's world, as text: `npm run build` bundles engine/web/ into it
 * (engine/web/build.mjs), because the guest's realm has no module loader to find the parts with.
 *
 * One JavaScript expression. Evaluated in the guest's realm before any guest code, it gives the function `web` of
 * engine/web/web.ts: `web(host: WebHost): WebControl`.
 */
export const webSource: string;
