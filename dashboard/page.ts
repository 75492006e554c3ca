/** What every page has at hand. */
import type { About } from '../common/dashboard-views.js';
import { ask, askText } from './api.js';

export interface PageContext {
  token: string;
  about: About;
  main: HTMLElement;
  /** Aborts when another page is opened. */
  signal: AbortSignal;
  /** Says on the page what is wrong; undefined: nothing is any more. */
  problem(text: string | undefined): void;
  title(text: string): void;
}

export type Page = (context: PageContext, rest: readonly string[]) => void | Promise<void>;

export const get = <T>({ token, signal }: PageContext, path: string): Promise<T> => ask<T>(token, path, signal);
export const getText = ({ token, signal }: PageContext, path: string): Promise<string> => askText(token, path, signal);

/** Now, and again and again, until another page is opened; what goes wrong is said, and tried again. */
export async function follow<T>(context: PageContext, path: string, onAnswer: (answer: T) => void): Promise<void> {
  const { signal, about, problem } = context;
  while (!signal.aborted) {
    try {
      onAnswer(await get<T>(context, path));
      problem(undefined);
    } catch (error) {
      if (signal.aborted) return;
      problem(error instanceof Error ? error.message : String(error));
    }
    await pause(about.everySeconds * 1_000, signal);
  }
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener('abort', () => (clearTimeout(timer), resolve()), { once: true });
  });
}

export const workloadLink = (namespace: string, name: string): string => `#/workload/${encodeURIComponent(namespace)}/${encodeURIComponent(name)}`;
export const nodeLink = (name: string): string => `#/node/${encodeURIComponent(name)}`;
export const objectLink = (name: string): string => `#/object/${encodeURIComponent(name)}`;
