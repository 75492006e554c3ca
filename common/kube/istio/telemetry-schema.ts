/** Telemetry and WasmPlugin, with what Istio's own validation asks of one by itself. */
import { bool, choice, ignored, integer, list, object, open, port, text, withCheck, word, type Schema } from '../schema.js';
import { TAG_ATTRIBUTES, tagTerms } from '../../telemetry/metric-tags.js';
import { oneTarget, policyTargets } from './fields.js';
import type { WasmPlugin } from './extensions.js';
import type { Telemetry } from './telemetry.js';

const MODES = ['CLIENT', 'SERVER', 'CLIENT_AND_SERVER'];
const providers = list(object({ name: word }, ['name']));
const modeMatch = object({ mode: choice(...MODES) });

const customTag: Schema = {
  type: 'object',
  fields: {
    literal: object({ value: word }, ['value']),
    environment: object({ name: word, defaultValue: text }, ['name']),
    header: object({ name: word, defaultValue: text }, ['name']),
    formatter: object({ value: word }, ['value']),
  },
  atMostOne: [['literal', 'environment', 'header', 'formatter']],
};

const tracing = object({
  match: modeMatch,
  providers,
  randomSamplingPercentage: { type: 'number', min: 0, max: 100 },
  disableSpanReporting: bool,
  customTags: { type: 'map', values: customTag },
  useRequestIdForTraceSampling: bool,
  enableIstioTags: bool,
  disableContextPropagation: bool,
});

const METRICS = [
  'ALL_METRICS', 'REQUEST_COUNT', 'REQUEST_DURATION', 'REQUEST_SIZE', 'RESPONSE_SIZE', 'TCP_OPENED_CONNECTIONS', 'TCP_CLOSED_CONNECTIONS', 'TCP_SENT_BYTES',
  'TCP_RECEIVED_BYTES', 'GRPC_REQUEST_MESSAGES', 'GRPC_RESPONSE_MESSAGES',
];

const tagValue: Schema = { ...text, note: 'texts, attributes that a formatter of Envoy\'s says, and either joined by +; in mode node texts' };

const tagOverride: Schema = withCheck<{ operation?: string; value?: string }>(object({ operation: choice('UPSERT', 'REMOVE'), value: tagValue }), ({ operation = 'UPSERT', value }, report, warn) => {
  if (operation === 'UPSERT' && value && !tagTerms(value)) warn(`found ${value}, which is not acted on: expected a text in quotes, one of ${TAG_ATTRIBUTES.join(', ')}, or several of these joined by +`, ['value']);
  if (operation === 'UPSERT' && !value) report('found nothing, operation UPSERT needs it', ['value']);
  if (operation === 'REMOVE' && value) report('found a value with operation REMOVE, expected none', ['value']);
});

const metricMatch: Schema = { type: 'object', fields: { metric: choice(...METRICS), customMetric: ignored(word, 'there are none but Istio\'s'), mode: choice(...MODES) }, atMostOne: [['metric', 'customMetric']] };

const metrics = object({
  providers,
  overrides: list(object({ match: metricMatch, disabled: bool, tagOverrides: { type: 'map', values: tagOverride } })),
  reportingInterval: ignored({ type: 'duration' }, 'a sidecar tells bytes when a connection ends, a node every 15 s'),
});

type TelemetrySpec = NonNullable<Telemetry['spec']>;

export const telemetry: Schema = withCheck<TelemetrySpec>(
  object({
    ...policyTargets,
    tracing: list(tracing),
    metrics: list(metrics),
    accessLogging: list(object({ match: modeMatch, providers, disabled: bool, filter: object({ expression: text }) })),
  }),
  (spec, report, warn) => {
    oneTarget(spec, report);
    spec.tracing?.forEach((entry, index) => (entry.providers?.length ?? 0) > 1 && warn('found several providers: the first one counts', ['tracing', index, 'providers', 1]));
  },
);

const url = withCheck<string>(word, (value, report) => {
  if (value === '') return;
  const scheme = /^([a-z][a-z0-9+.-]*):\/\//i.exec(value)?.[1]?.toLowerCase() ?? '';
  if (!['', 'file', 'http', 'https', 'oci'].includes(scheme)) report(`found "${value}", expected file://, http://, https:// or oci://`);
  else if (scheme !== 'file' && !URL.canParse(scheme ? value : `oci://${value}`)) report(`found ${JSON.stringify(value)}, expected a URL`);
});

type Env = { name: string; valueFrom?: string; value?: string };

const vmConfig = object({
  env: withCheck<Env[]>(list(object({ name: word, valueFrom: choice('INLINE', 'HOST'), value: text }, ['name'])), (value, report) => {
    value.forEach(({ name, valueFrom, value: content }, index) => {
      if (name.length > 256) report(`found ${name.length} characters, expected at most 256`, [index, 'name']);
      if (value.findIndex((other) => other.name === name) < index) report(`found "${name}" again, expected each variable once`, [index, 'name']);
      if (valueFrom === 'HOST' && content) report('found a value with valueFrom HOST, expected none', [index, 'value']);
    });
  }),
});

const ofLength = (most: number): Schema => withCheck<string>(text, (value, report) => {
  if (value.length > most) report(`found ${value.length} characters, expected at most ${most}`);
});

export const wasmPlugin: Schema = withCheck<WasmPlugin['spec']>(
  object(
    {
      ...policyTargets,
      url,
      sha256: withCheck<string>(text, (value, report) => {
        if (value !== '' && !/^[a-f0-9]{64}$/.test(value)) report('found no SHA-256, expected 64 digits of 0-9 and a-f');
      }),
      imagePullPolicy: ignored(choice('UNSPECIFIED_POLICY', 'IfNotPresent', 'Always'), 'no images are pulled'),
      imagePullSecret: ignored(ofLength(253), 'no images are pulled'),
      verificationKey: ignored(text, 'Istio does not act on it either'),
      pluginConfig: open({}),
      pluginName: ofLength(256),
      phase: choice('UNSPECIFIED_PHASE', 'AUTHN', 'AUTHZ', 'STATS'),
      priority: integer(-0x8000_0000, 0x7fff_ffff),
      failStrategy: choice('FAIL_CLOSE', 'FAIL_OPEN', 'FAIL_RELOAD'),
      vmConfig,
      match: list(object({ mode: choice('UNDEFINED', ...MODES), ports: list(object({ number: port }, ['number'])) })),
      type: choice('UNSPECIFIED_PLUGIN_TYPE', 'HTTP', 'NETWORK'),
    },
    ['url'],
  ),
  (spec, report) => oneTarget(spec, report),
);

