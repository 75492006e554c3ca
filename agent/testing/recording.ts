/** Recordings of istiod's answers: ../shared/fixtures/istiod beside the checkout, or UNDERPASS_FIXTURES. */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { projectRoot } from '../../common/paths.js';
import { DeltaDiscoveryResponse } from '../../proto/generated/envoy/service/discovery/v3/discovery.js';
import type { AnyResourceType, XdsResource } from '../xds/resource-type.js';
import { sidecarTypes, type SidecarState } from '../xds/sidecar-stream.js';

export interface RecordedEvent {
  dir: 'send' | 'recv';
  step: number;
  type_url: string;
  file?: string;
  resource_names?: string[];
  subscribe?: string[];
  unsubscribe?: string[];
  removed_resources?: string[];
  initial_resource_versions?: Record<string, string>;
}

export interface RecordedSession {
  name: string;
  node: string;
  mode: 'sotw' | 'delta';
  metadata: { NAMESPACE: string; NAME: string; LABELS: Record<string, string>; SERVICE_ACCOUNT: string; NODE_NAME?: string };
  events: RecordedEvent[];
}

export class Recording {
  readonly steps: { step: number; desc: string }[];
  readonly sessions: RecordedSession[];

  private constructor(readonly folder: string) {
    const { steps, sessions } = JSON.parse(readFileSync(join(folder, 'scenario.json'), 'utf8')) as Pick<Recording, 'steps' | 'sessions'>;
    this.steps = steps;
    this.sessions = sessions;
  }

  /**
   * Of the checkout itself (test/fixtures) or, for the many others, of the shared fixtures; undefined when those are not
   * there. Of some scenarios the checkout has only the session that pilot is compared with.
   */
  static open(scenario: string): Recording | undefined {
    const shared = process.env['UNDERPASS_FIXTURES'] ?? join(projectRoot, '..', 'shared', 'fixtures');
    const folders = [join(projectRoot, 'test', 'fixtures'), shared].map((base) => join(base, 'istiod', scenario)).filter((path) => existsSync(join(path, 'scenario.json')));
    return folders.map((path) => new Recording(path)).find((recording) => recording.#isComplete);
  }

  get #isComplete(): boolean {
    return this.sidecars.every(({ events }) => events.every(({ file }) => file === undefined || existsSync(join(this.folder, file))));
  }

  /** Delta sessions of the sidecar kind. */
  get sidecars(): RecordedSession[] {
    return this.sessions.filter((session) => session.mode === 'delta' && session.node.startsWith('sidecar~'));
  }

  response(event: RecordedEvent): DeltaDiscoveryResponse {
    return DeltaDiscoveryResponse.decode(readFileSync(join(this.folder, event.file as string)));
  }

  /** What a client holds after the steps up to `step`. */
  state(session: RecordedSession, step = Infinity): SidecarState {
    const state = { clusters: new Map(), endpoints: new Map(), listeners: new Map(), routes: new Map() } as Record<keyof SidecarState, Map<string, XdsResource<unknown>>>;
    for (const event of session.events) {
      if (event.dir !== 'recv' || event.step > step) continue;
      const response = this.response(event);
      for (const [kind, type] of Object.entries(sidecarTypes) as [keyof SidecarState, AnyResourceType][]) {
        if (type.typeUrl !== response.type_url) continue;
        for (const { name, version, resource } of response.resources) state[kind].set(name, type.decode(name, version, resource));
        for (const name of response.removed_resources) state[kind].delete(name);
      }
    }
    return state as unknown as SidecarState;
  }
}
