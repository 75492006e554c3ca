/**
 * How what comes to one pod over the network is led to its inbound listener: by the kernel's look-up of listening sockets, and by
 * rules where that can't be. One begins before the other ends.
 */
import { errorCode, errorMessage } from '../../common/errors.js';
import type { CaptureRules, InboundSteering } from './collaborators.js';

export interface InboundState {
  /** `unknown`: they could not be read; see Actual. */
  rules: 'none' | 'active' | 'stopped' | 'unknown';
  steered: 'none' | 'active' | 'stopped';
}

export interface InboundPlace {
  uid: string;
  netnsPath: string;
  ips: readonly string[];
  cookie: () => Promise<bigint>;
  rules: CaptureRules;
  /** Its label, or the kernel, does not say otherwise. */
  maySteer: boolean;
}

export class InboundWay {
  readonly #steering: InboundSteering | undefined;
  #state: InboundState;
  #ruleNotes: string[] = [];
  /** Why it is rules. */
  #problem: string | undefined;
  /** The proxy may listen for it to be seen at the next look; else it is asked again when the pod's labels change. */
  #mayPass = false;

  constructor(steering: InboundSteering | undefined, state: InboundState) {
    this.#steering = steering;
    this.#state = { ...state };
  }

  /** New connections are led to the proxy, as far as is known. */
  get isActive(): boolean {
    return this.#state.steered === 'active' || this.#state.rules === 'active' || this.#state.rules === 'unknown';
  }

  /** But for those that the kernel has judged at connect(): rules know none of these. */
  get isPassable(): boolean {
    return this.#state.steered === 'active' && this.#state.rules !== 'active' && this.#state.rules !== 'unknown';
  }

  /** Connections that were led there may be left, and need the listener. */
  get isPresent(): boolean {
    return this.#state.steered !== 'none' || this.#state.rules !== 'none';
  }

  /** By rules that are known to be there. */
  get isRuled(): boolean {
    return this.#state.rules === 'active';
  }

  /** Somebody changed the rules. */
  lost(): void {
    if (this.#state.rules === 'active') this.#state.rules = 'unknown';
  }

  get notes(): string[] {
    if (this.#state.rules !== 'active') return [];
    return [...this.#ruleNotes, ...(this.#problem === undefined ? [] : [this.#problem])];
  }

  tryAgain(): void {
    this.#problem = undefined;
  }

  /** @returns what is worth a line in the log */
  async lead({ uid, netnsPath, ips, cookie, rules, maySteer }: InboundPlace): Promise<string | undefined> {
    let news: string | undefined;
    const steering = maySteer ? this.#steering : undefined;
    if (steering && (this.#problem === undefined || this.#mayPass) && this.#state.steered !== 'active') {
      try {
        await steering.start({ uid, netnsPath, netnsCookie: await cookie(), ipv6: ips.some((address) => address.includes(':')) }, this.#problem === undefined);
        this.#state.steered = 'active';
        this.#problem = undefined;
      } catch (error) {
        this.#mayPass = errorCode(error) === 'UNDERPASS_NO_LISTENER';
        const problem = `what comes to the pod is redirected by iptables: ${errorMessage(error)}`;
        if (problem !== this.#problem) news = problem;
        this.#problem = problem;
      }
    }
    if (steering && this.#state.steered === 'active') {
      steering.place?.(uid, netnsPath);
      await this.#stopRules(rules);
      return news;
    }
    if (this.#state.rules !== 'active') {
      this.#ruleNotes = (await rules.start(this.#state.rules === 'unknown')).notes;
      this.#state.rules = 'active';
    }
    // Also what an agent of another version attached.
    if (this.#state.steered !== 'none') this.#steering?.stop(uid);
    if (this.#state.steered === 'active') this.#state.steered = 'stopped';
    return news;
  }

  /** New connections go to the pod's programs. */
  async stop(uid: string, rules: CaptureRules): Promise<void> {
    this.#stopSteering(uid);
    await this.#stopRules(rules);
  }

  /** No connection is left that was led to the proxy. */
  async remove(uid: string, rules: CaptureRules): Promise<void> {
    if (this.#state.rules !== 'none') await rules.remove();
    this.forget(uid);
  }

  /** The pod is gone, and its rules with it. */
  forget(uid: string): void {
    if (this.#state.steered !== 'none') this.#steering?.forget(uid);
    this.#state = { rules: 'none', steered: 'none' };
  }

  async #stopRules(rules: CaptureRules): Promise<void> {
    if (this.#state.rules !== 'active' && this.#state.rules !== 'unknown') return;
    await rules.stop();
    this.#state.rules = 'stopped';
  }

  #stopSteering(uid: string): void {
    if (this.#state.steered !== 'active') return;
    this.#steering?.stop(uid);
    this.#state.steered = 'stopped';
  }
}
