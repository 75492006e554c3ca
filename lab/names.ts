/** Everything that a lab makes on the machine, by name: what is not named here, `lab clean` does not find. */
import { dirname, join } from 'node:path';
import { cgroup2Root } from '../common/cgroup.js';
import { UnderpassError } from '../common/errors.js';
import { buildDir, defaultRunDir } from '../common/paths.js';
import { labDir } from '../common/lab-api.js';

/** Where ip-netns(8) keeps named namespaces, so that `ip -n NAME` works on a lab's. */
export const NETNS_DIR = '/run/netns';
export const NETNS_PREFIX = 'uplab-';
export const CGROUP_PREFIX = 'underpass-lab-';

/** Where sidecars look for the control plane unless told: pilot's own default. */
export const DEFAULT_DISCOVERY = '127.0.0.1:15010';

export const execHelper = join(buildDir, 'underpass-exec');

/** Paths of one lab. */
export class LabNames {
  readonly dir: string;
  readonly objectsDir: string;
  /** Of a lab that was started with --detach. */
  readonly log: string;
  readonly socket: string;
  readonly discoverySocket: string;
  /** Commands that every pod's PATH begins with. */
  readonly binDir: string;
  readonly cgroup: string;
  readonly netnsPrefix: string;

  constructor(
    readonly lab: string,
    readonly runDir = defaultRunDir,
  ) {
    if (!/^[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?$/.test(lab)) {
      throw new UnderpassError(
        'UNDERPASS_LAB_NAME',
        `naming a lab ${JSON.stringify(lab)}: expected 1 to 32 of a-z, 0-9 and -, no - at the ends`,
      );
    }
    this.dir = labDir(lab, runDir);
    this.log = join(dirname(this.dir), `.${lab}.log`);
    this.objectsDir = join(this.dir, 'objects');
    this.socket = join(this.dir, 'lab.sock');
    this.discoverySocket = join(this.dir, 'xds.sock');
    this.binDir = join(this.dir, 'bin');
    this.cgroup = join(cgroup2Root(), `${CGROUP_PREFIX}${lab}`);
    this.netnsPrefix = `${NETNS_PREFIX}${lab}-`;
  }

  nodeNetns(node: string): string {
    return `${this.netnsPrefix}${node}`;
  }

  /** The namespace that links the nodes; no node's name begins with a dash. */
  fabricNetns(): string {
    return `${this.netnsPrefix}-fabric`;
  }

  /** A Kubernetes namespace holds no dot, so this can't be a node's but for a node named like it. */
  podNetns(namespace: string, pod: string): string {
    return `${this.netnsPrefix}${namespace}.${pod}`;
  }

  isPodNetns(name: string): boolean {
    return name.startsWith(this.netnsPrefix) && name.includes('.');
  }

  podCgroup(node: string, uid: string): string {
    // As kubelet names them.
    return join(this.cgroup, node, 'pods', `pod${uid}`);
  }

  podDir(uid: string): string {
    return join(this.dir, 'pods', uid);
  }
}

export function netnsPath(name: string): string {
  return join(NETNS_DIR, name);
}
