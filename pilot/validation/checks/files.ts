/** Certificates by path: what a file of a gateway's pod holds, where it comes from a Secret or a ConfigMap. */
import type { ConfigMap, Pod, Secret } from '../../../common/kube/types.js';
import { fact, namespaceOf, type View } from '../mesh-index.js';
import { secretValue } from './certificates.js';

interface Items {
  items?: { key: string; path: string }[];
}

/** A pod's volumes as far as they bring objects' entries as files. */
interface Volume {
  name: string;
  secret?: { secretName?: string } & Items;
  configMap?: { name: string } & Items;
  projected?: { sources?: { secret?: { name: string } & Items; configMap?: { name: string } & Items }[] };
}

export interface MountedFile {
  /** `Secret namespace/name` or `ConfigMap namespace/name` */
  object: string;
  /** The entry within it. */
  key: string;
  /** Undefined where the object, or its entry, is not there. */
  content: Buffer | undefined;
}

/** Without slashes at its end. Whoever may make a pod says how many it has: an expression would try from each of them. */
function folderOf({ mountPath }: { mountPath: string }): string {
  let end = mountPath.length;
  while (end > 0 && mountPath[end - 1] === '/') end--;
  return mountPath.slice(0, end);
}

/** The file's place within the volume that is mounted there, the deepest one if several are. */
function mountOf(pod: Pod, path: string): { volume: string; inside: string } | undefined {
  const mounts = pod.spec.containers.flatMap(({ volumeMounts }) => volumeMounts ?? []).filter(({ mountPath }) => path === mountPath || path.startsWith(`${folderOf({ mountPath })}/`));
  const [deepest] = mounts.sort((a, b) => b.mountPath.length - a.mountPath.length);
  if (!deepest) return undefined;
  const rest = path.slice(folderOf(deepest).length).replace(/^\/+/, '');
  return { volume: deepest.name, inside: [deepest.subPath ?? '', rest].filter((part) => part !== '').join('/') };
}

/** @returns undefined for a path that no Secret or ConfigMap is behind: the file may be in the image */
export function mountedFile(view: View, pod: Pod, path: string): MountedFile | undefined {
  const mount = mountOf(pod, path);
  const volume = mount && (pod.spec.volumes as Volume[] | undefined)?.find(({ name }) => name === mount.volume);
  if (!mount || !volume) return undefined;
  const namespace = namespaceOf(pod);
  const secrets = [...(volume.secret?.secretName ? [{ name: volume.secret.secretName, items: volume.secret.items }] : []), ...(volume.projected?.sources ?? []).flatMap(({ secret }) => secret ?? [])];
  const maps = [...(volume.configMap ? [volume.configMap] : []), ...(volume.projected?.sources ?? []).flatMap(({ configMap }) => configMap ?? [])];
  const found: MountedFile[] = [];
  const keyOf = ({ items }: Items): string | undefined => (items ? items.find((item) => item.path === mount.inside)?.key : mount.inside);
  for (const source of secrets) {
    const key = keyOf(source);
    if (key === undefined) continue;
    const [secret] = view.of<Secret>(fact.secret(namespace, source.name));
    found.push({ object: `Secret ${namespace}/${source.name}`, key, content: secret && secretValue(secret.object, key) });
  }
  for (const source of maps) {
    const key = keyOf(source);
    if (key === undefined) continue;
    const [map] = view.of<ConfigMap>(fact.configMap(namespace, source.name));
    const text = map?.object.data?.[key];
    found.push({ object: `ConfigMap ${namespace}/${source.name}`, key, content: text === undefined ? undefined : Buffer.from(text, 'utf8') });
  }
  return found.find(({ content }) => content) ?? found[0];
}
