/** A CycloneDX 1.5 list of what is in the image (https://cyclonedx.org/docs/1.5/json/). No time, no random id: the same content gives the same bytes. */
import type { NpmPackage } from './modules.js';
import type { DebianPackage } from './system.js';

export interface Component {
  type: 'library' | 'application';
  'bom-ref': string;
  name: string;
  version: string;
  purl: string;
  licenses: ({ license: { name: string } } | { expression: string })[];
}

export interface Bom {
  bomFormat: 'CycloneDX';
  specVersion: '1.5';
  version: 1;
  metadata: { component: Component };
  components: Component[];
}

export interface Parts {
  product: { version: string; license: string };
  envoyVersion: string;
  /** Where Node is not of a Debian package. */
  nodeVersion?: string;
  npm: readonly NpmPackage[];
  debian: readonly (DebianPackage & { licences: readonly string[]; distribution: string })[];
}

export function bom({ product, envoyVersion, nodeVersion, npm, debian }: Parts): Bom {
  const components = [
    component('application', 'envoy', envoyVersion, `pkg:github/envoyproxy/envoy@v${envoyVersion}`, [{ expression: 'Apache-2.0' }]),
    ...(nodeVersion === undefined ? [] : [component('application', 'node', nodeVersion, `pkg:github/nodejs/node@v${nodeVersion}`, [{ license: { name: 'MIT and those of what is built in: licenses/node/LICENSE' } }])]),
    ...npm.map(({ name, version, license }) => component('library', name, version, `pkg:npm/${name.replace('@', '%40')}@${version}`, license === undefined ? [] : [{ expression: license }])),
    ...debian.map(({ name, version, architecture, licences, distribution }) =>
      component('library', name, version, `pkg:deb/debian/${name}@${encodeURIComponent(version)}?arch=${architecture}&distro=${distribution}`, licences.map((licence) => ({ license: { name: licence } }))),
    ),
  ];
  // A package can lie at several places of node_modules in one version.
  const unique = new Map(components.map((each) => [each['bom-ref'], each]));
  return {
    bomFormat: 'CycloneDX',
    specVersion: '1.5',
    version: 1,
    metadata: { component: component('application', 'underpass', product.version, `pkg:generic/underpass@${product.version}`, [{ expression: product.license }]) },
    components: [...unique.values()],
  };
}

function component(type: Component['type'], name: string, version: string, purl: string, licenses: Component['licenses']): Component {
  return { type, 'bom-ref': purl, name, version, purl, licenses };
}

/** The short names in a Debian copyright file (https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/); none in one without that form. */
export function licenceNames(copyright: string): string[] {
  if (!copyright.startsWith('Format:')) return [];
  return [...new Set([...copyright.matchAll(/^License: *(\S.*)$/gm)].map(([, name = '']) => name.trim()))].sort();
}
