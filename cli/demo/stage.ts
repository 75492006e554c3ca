/** What the demo's steps share: where they run, and how they tell what they have shown. */
import { errorMessage, UnderpassError } from '../../common/errors.js';
import type { PodRecord } from '../../common/lab-api.js';
import type { Lab } from '../../lab/index.js';
import type { NodeProcess } from '../node-process.js';
import { ProgressLine } from '../progress.js';

const GREEN = '\u001b[32m';
const RED = '\u001b[31m';
const BOLD = '\u001b[1m';
const DIM = '\u001b[2m';
const RESET = '\u001b[0m';

export const STEPS = 6;

/** Prints steps and proofs. A promise that does not hold is counted, and the demo goes on: the rest is worth seeing. */
export class Narrator {
  broken = 0;
  readonly #colour = process.stdout.isTTY === true && !process.env['NO_COLOR'];
  readonly #progress = new ProgressLine();
  readonly #started = performance.now();

  #paint(code: string, text: string): string {
    return this.#colour ? code + text + RESET : text;
  }

  step(number: number, title: string): void {
    this.#progress.clear();
    const seconds = ((performance.now() - this.#started) / 1000).toFixed(0);
    process.stdout.write(`\n${this.#paint(BOLD, `[${number}/${STEPS}] ${title}`)}  ${this.#paint(DIM, `${seconds} s`)}\n`);
  }

  say(text: string): void {
    this.#progress.clear();
    process.stdout.write(`      ${text}\n`);
  }

  /** Shows a command as the user would type it. */
  command(text: string): void {
    this.#progress.clear();
    process.stdout.write(`    $ ${this.#paint(BOLD, text)}\n`);
  }

  prove(holds: boolean, text: string): void {
    if (!holds) this.broken++;
    this.#progress.clear();
    process.stdout.write(`  ${holds ? this.#paint(GREEN, 'ok') : this.#paint(RED, 'BROKEN')}  ${text}\n`);
  }

  fail(error: unknown): void {
    this.prove(false, errorMessage(error));
    if (error instanceof UnderpassError && error.hint) this.say(error.hint);
  }

  progress(text: string): void {
    this.#progress.show(`      ${text}`);
  }

  text(block: string): void {
    this.#progress.clear();
    process.stdout.write(block);
  }
}

/** What was seen, and whether it is as promised. */
export interface Proof {
  holds: boolean;
  text: string;
}

export interface Stage {
  lab: Lab;
  node: NodeProcess;
  narrator: Narrator;
  signal: AbortSignal;
  /** Namespaces of the user's YAML: in the mesh by the shared proxy, and outside of it. */
  meshed: string;
  plain: string;
}

/** All pods of the YAML run and are ready; those with a sidecar are so only when they have a control plane. */
export function podsProof(lab: string, directory: string, pods: readonly PodRecord[]): Proof {
  const late = pods.filter(({ phase, ready, hasSidecar, containers }) => phase !== 'Running' || !(hasSidecar ? containers.some((container) => container.pid !== undefined) : ready));
  return {
    holds: pods.length > 0 && late.length === 0,
    text: `lab ${lab} runs ${pods.length - late.length} pods of ${directory}${late.length > 0 ? `; not ready: ${late.map(({ namespace, name }) => `${namespace}/${name}`).join(', ')}` : ''}`,
  };
}

/** Where the YAML has a client: the namespaces that the steps need. */
export function findNamespaces(pods: readonly PodRecord[]): { meshed: string; plain: string } {
  const withClient = pods.filter((pod) => pod.labels['app'] === 'client');
  const meshed = withClient.find((pod) => pod.namespaceLabels['underpass.io/mode'] === 'node');
  const plain = withClient.find((pod) => pod.namespaceLabels['underpass.io/mode'] === undefined && !pod.hasSidecar);
  if (!meshed || !plain) {
    throw new UnderpassError('UNDERPASS_DEMO_YAML', `reading the demo's YAML: there is no namespace ${meshed ? 'without the label underpass.io/mode' : 'labelled underpass.io/mode=node'} that holds a pod labelled app=client`, {
      hint: 'see examples/canary for what the demo expects',
    });
  }
  return { meshed: meshed.namespace, plain: plain.namespace };
}
