/** All that an installation consists of, as the files of the chart have it. */
import type { KubeObject } from '../../common/kube/types.js';
import { agentObjects } from './agent-objects.js';
import { gatewayObjects } from './gateway-objects.js';
import { monitoringObjects } from './monitoring-objects.js';
import { pilotObjects } from './pilot-objects.js';
import type { Values } from './settings.js';
import { evaluate, type Template } from './template.js';

export const FILES: Readonly<Record<string, readonly Template[]>> = { agent: agentObjects(), pilot: pilotObjects(), gateways: gatewayObjects(), monitoring: monitoringObjects() };

/** @returns plain objects, in the order in which they are to be applied */
export function installationObjects(values: Values): KubeObject[] {
  return Object.values(FILES).flat().flatMap((template) => {
    const object = evaluate(template, values);
    return object === undefined ? [] : [object as KubeObject];
  });
}
