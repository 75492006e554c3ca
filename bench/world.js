/** What a comparison runs in: pods that somebody made and programs that run in them. Who composes it is not bench's business. */
export {};
//# sourceMappingURL=world.js.map