/** Which extensions the running Envoy has, by what it says of itself in its node (first ADS request, and /server_info). */
import { Any } from '../../proto/generated/google/protobuf/any.js';
import { TypedStruct as UdpaTypedStruct } from '../../proto/generated/udpa/type/v1/typed_struct.js';
import { TypedStruct } from '../../proto/generated/xds/type/v3/typed_struct.js';
import { unpack } from '../../common/xds/any.js';

interface ExtensionLike {
  name?: string;
  category?: string;
  disabled?: boolean;
  type_urls?: readonly string[];
}

export class EnvoyExtensions {
  readonly #types = new Set<string>();
  readonly #names = new Set<string>();

  /** The file with the bound on lines of access logs, see log-bound.ts; undefined: there is none. */
  readonly logBound: string | undefined;

  constructor(extensions: readonly ExtensionLike[], { logBound }: { logBound?: string } = {}) {
    this.logBound = logBound;
    for (const extension of extensions) {
      if (extension.disabled) continue;
      if (extension.name) this.#names.add(extension.name);
      for (const url of extension.type_urls ?? []) this.#types.add(messageName(url));
    }
  }

  get size(): number {
    return this.#names.size;
  }

  /** Message names of all configurations that it takes. */
  get types(): ReadonlySet<string> {
    return this.#types;
  }

  hasName(name: string): boolean {
    return this.#names.has(name);
  }

  /** Whether a factory takes this configuration; a TypedStruct stands for the type that it names. */
  accepts(config: Any): boolean {
    return this.#types.has(configType(config));
  }
}

/** The full message name that an extension's configuration stands for. */
export function configType(config: Any): string {
  const struct = unpack(UdpaTypedStruct, config) ?? unpack(TypedStruct, config);
  return messageName(struct ? struct.type_url : config.type_url);
}

function messageName(url: string): string {
  return url.slice(url.lastIndexOf('/') + 1);
}
