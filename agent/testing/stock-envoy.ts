/** The extensions of the stock Envoy that this project pins, for tests that fold without running one. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { projectRoot } from '../../common/paths.js';
import { EnvoyExtensions } from '../proxy/extensions.js';

export const stockExtensionsPath = join(projectRoot, 'test', 'fixtures', 'envoy-1.40.0-extensions.json');

export function stockExtensions(): EnvoyExtensions {
  return new EnvoyExtensions(JSON.parse(readFileSync(stockExtensionsPath, 'utf8')) as { name: string; type_urls?: string[] }[]);
}
