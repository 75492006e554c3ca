/** The settings in force, kept up to date: defaults, then the MeshConfig of a file or of the ConfigMap, then what was given by hand. */
import { readFile } from 'node:fs/promises';
import { errorMessage, UnderpassError } from '../../common/errors.js';
import { FileFollower } from '../../common/file-follower.js';
import type { ConfigMap } from '../../common/kube/types.js';
import type { Closable } from '../../common/lifecycle.js';
import type { Logger } from '../../common/log.js';
import { DEFAULT_MESH_CONFIG, type MeshConfig } from '../model/mesh.js';
import { readMeshConfig, readMeshNetworks } from './mesh-config.js';

const CONFIG_MAP = 'istio';

export class LiveMeshConfig implements Closable {
  #read: Partial<MeshConfig> = {};
  #text = '';
  #problems: string[] = [];
  #networksText = '';
  #networks: Partial<MeshConfig> = {};
  #networksProblems: string[] = [];
  #follower: FileFollower | undefined;

  /**
   * @param given settings that win over whatever is read
   * @param file a file with a MeshConfig; with one, the ConfigMap does not count
   */
  constructor(readonly given: Partial<MeshConfig>, readonly file: string | undefined, readonly logger: Logger, readonly onChange: (mesh: MeshConfig) => void) {}

  get current(): MeshConfig {
    return { ...DEFAULT_MESH_CONFIG, ...this.#read, ...this.#networks, ...this.given };
  }

  /** What is wrong with the MeshConfig as it is written now; errors mean that the one before is in force. */
  get problems(): readonly string[] {
    return [...this.#problems, ...this.#networksProblems];
  }

  /** @throws UnderpassError `UNDERPASS_MESH_CONFIG` when the first version of the file can't be taken */
  async start(): Promise<void> {
    const { file } = this;
    if (!file) return;
    let text: string;
    try {
      text = await readFile(file, 'utf8');
    } catch (error) {
      throw new UnderpassError('UNDERPASS_MESH_CONFIG', `reading the mesh configuration ${file}: ${errorMessage(error)}`, { cause: error, hint: 'give an existing file with --mesh-config' });
    }
    if (!this.#take(text, file, false)) throw new UnderpassError('UNDERPASS_MESH_CONFIG', `reading the mesh configuration: ${this.#problems.join('; ')}`);
    this.#follower = new FileFollower(file, () => {
      void readFile(file, 'utf8').then((newest) => this.#take(newest, file, true), (error: unknown) => this.logger.warn({ file, reason: errorMessage(error) }, 'the mesh configuration can not be read; the last good one stays'));
    });
  }

  /** Takes the mesh's ConfigMap as it is now, absent too. @returns whether settings changed */
  offer(configMap: ConfigMap | undefined): boolean {
    const place = `ConfigMap ${this.#home}/${CONFIG_MAP}`;
    const networks = this.#takeNetworks(configMap?.data?.['meshNetworks'] ?? '', `${place}: data.meshNetworks`);
    if (this.file) return networks;
    // Both are read, whatever the other brings.
    return this.#take(configMap?.data?.['mesh'] ?? '', `${place}: data.mesh`, false) || networks;
  }

  #takeNetworks(text: string, place: string): boolean {
    if (text === this.#networksText) return false;
    this.#networksText = text;
    const { settings, problems } = readMeshNetworks(text);
    this.#networksProblems = problems.map(({ message }) => `${place}:${message}`);
    for (const { severity, message } of problems) this.logger[severity === 'error' ? 'error' : 'warn']({ lastGoodStays: severity === 'error' }, `${place}:${message}`);
    if (settings) this.#networks = settings;
    return settings !== undefined;
  }

  /** Where the mesh's ConfigMap is found: not where it may itself say that the root is, else it would be lost by being read. */
  get #home(): string {
    return (this.file ? this.current : { ...DEFAULT_MESH_CONFIG, ...this.given }).rootNamespace;
  }

  get configMapKey(): string {
    return `/ConfigMap/${this.#home}/${CONFIG_MAP}`;
  }

  #take(text: string, place: string, tell: boolean): boolean {
    if (text === this.#text) return false;
    this.#text = text;
    const { settings, problems } = readMeshConfig(text);
    this.#problems = problems.map(({ message }) => `${place}:${message}`);
    for (const { severity, message } of problems) this.logger[severity === 'error' ? 'error' : 'warn']({ lastGoodStays: severity === 'error' }, `${place}:${message}`);
    if (!settings) return false;
    this.#read = settings;
    if (tell) this.onChange(this.current);
    return true;
  }

  close(): void {
    this.#follower?.close();
  }
}
