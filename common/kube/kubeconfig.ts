/** How an API server is reached, out of a kubeconfig or of what Kubernetes gives every pod: its address, whom to trust, and how to prove who one is. */
import { readFile } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import { parse } from 'yaml';
import { errorMessage, UnderpassError } from '../errors.js';

interface NamedCluster { name: string; cluster?: { server?: string; 'certificate-authority'?: string; 'certificate-authority-data'?: string; 'insecure-skip-tls-verify'?: boolean; 'tls-server-name'?: string } }
interface NamedUser { name: string; user?: { token?: string; tokenFile?: string; 'client-certificate'?: string; 'client-certificate-data'?: string; 'client-key'?: string; 'client-key-data'?: string; exec?: unknown; 'auth-provider'?: unknown; username?: string; password?: string } }
interface NamedContext { name: string; context?: { cluster?: string; user?: string } }
interface WrittenKubeconfig { clusters?: NamedCluster[]; users?: NamedUser[]; contexts?: NamedContext[]; 'current-context'?: string }

export interface ApiServer {
  url: URL;
  /** Read again for each request: tokens and certificates on disk are rotated. */
  credentials(): Promise<{ headers: Record<string, string>; ca?: string; cert?: string; key?: string; servername?: string; rejectUnauthorized: boolean }>;
}

/** Where Kubernetes mounts a pod's own token and the API server's root. */
const ACCOUNT_FILES = '/var/run/secrets/kubernetes.io/serviceaccount';

/** The API server of the cluster that this process is a pod of; undefined when it is none. The token is bound to the pod, and rotated. */
export function inClusterServer(environment: NodeJS.ProcessEnv = process.env, files = ACCOUNT_FILES): ApiServer | undefined {
  const { KUBERNETES_SERVICE_HOST: host, KUBERNETES_SERVICE_PORT: port = '443' } = environment;
  if (!host) return undefined;
  return {
    url: new URL(`https://${host.includes(':') ? `[${host}]` : host}:${port}`),
    credentials: async () => {
      const [ca, token] = await Promise.all(['ca.crt', 'token'].map((name) => readFile(join(files, name), 'utf8')));
      return { headers: { authorization: `Bearer ${token!.trim()}` }, ca: ca!, rejectUnauthorized: true };
    },
  };
}

export async function readKubeconfig(file: string, context?: string): Promise<ApiServer> {
  let text: string;
  try {
    text = await readFile(file, 'utf8');
  } catch (error) {
    throw new UnderpassError('UNDERPASS_KUBECONFIG', `reading kubeconfig ${file}: ${errorMessage(error)}`, { cause: error, hint: 'give an existing file with --kubeconfig' });
  }
  return parseKubeconfig(text, { place: file, folder: dirname(resolve(file)), ...(context === undefined ? {} : { context }) });
}

/**
 * @param folder where relative paths begin; without one the kubeconfig comes from somebody else (a Secret) and may name no files
 * @throws UnderpassError `UNDERPASS_KUBECONFIG` that names the place and what was expected
 */
export function parseKubeconfig(text: string, { place, folder, context }: { place: string; folder?: string; context?: string }): ApiServer {
  const wrong = (message: string): UnderpassError => new UnderpassError('UNDERPASS_KUBECONFIG', `reading kubeconfig ${place}: ${message}`);
  let written: WrittenKubeconfig;
  try {
    written = (parse(text) ?? {}) as WrittenKubeconfig;
  } catch (error) {
    throw wrong(`not YAML: ${errorMessage(error)}`);
  }
  const named = <T extends { name: string }>(list: T[] | undefined, name: string | undefined, what: string): T => {
    const found = Array.isArray(list) ? list.find((item) => item?.name === name) : undefined;
    if (!found) throw wrong(`found no ${what} ${JSON.stringify(name ?? '')}`);
    return found;
  };
  const chosen = named(written.contexts, context ?? written['current-context'], 'context').context ?? {};
  const cluster = named(written.clusters, chosen.cluster, 'cluster').cluster ?? {};
  const user = named(written.users, chosen.user, 'user').user ?? {};
  if (!cluster.server || !URL.canParse(cluster.server)) throw wrong(`clusters: server: found ${JSON.stringify(cluster.server ?? '')}, expected a URL`);
  for (const key of ['exec', 'auth-provider'] as const) if (user[key] !== undefined) throw wrong(`users: ${key} is not supported, expected a token, tokenFile or a client certificate`);
  const files = [cluster['certificate-authority'], user.tokenFile, user['client-certificate'], user['client-key']].filter((path) => path !== undefined);
  if (folder === undefined && files.length > 0) throw wrong(`found the file ${files[0]}, expected the data itself`);
  const material = async (data: string | undefined, file: string | undefined): Promise<string | undefined> => (data !== undefined ? Buffer.from(data, 'base64').toString('utf8') : file === undefined ? undefined : readFile(resolve(folder!, file), 'utf8'));
  return {
    url: new URL(cluster.server),
    credentials: async () => {
      const [ca, cert, key, fromFile] = await Promise.all([
        material(cluster['certificate-authority-data'], cluster['certificate-authority']),
        material(user['client-certificate-data'], user['client-certificate']),
        material(user['client-key-data'], user['client-key']),
        material(undefined, user.tokenFile),
      ]);
      const token = fromFile?.trim() ?? user.token;
      const authorization = token ? `Bearer ${token}` : user.username ? `Basic ${Buffer.from(`${user.username}:${user.password ?? ''}`).toString('base64')}` : undefined;
      return {
        headers: (authorization ? { authorization } : {}) as Record<string, string>,
        ...(ca === undefined ? {} : { ca }),
        ...(cert === undefined ? {} : { cert }),
        ...(key === undefined ? {} : { key }),
        ...(cluster['tls-server-name'] ? { servername: cluster['tls-server-name'] } : {}),
        rejectUnauthorized: cluster['insecure-skip-tls-verify'] !== true,
      };
    },
  };
}
