import { specCases } from '../testing.js';

specCases({
  apiVersion: 'telemetry.istio.io/v1',
  kind: 'Telemetry',
  good: {
    'tracing and access logging': `
selector: {matchLabels: {app: a}}
tracing: [{match: {mode: SERVER}, providers: [{name: zipkin}], randomSamplingPercentage: 12.5, disableSpanReporting: false, customTags: {a: {literal: {value: b}}, c: {header: {name: x, defaultValue: d}}}}]
accessLogging: [{match: {mode: CLIENT}, providers: [{name: envoy}], disabled: true, filter: {expression: "response.code >= 400"}}]`,
    metrics: `metrics: [{providers: [{name: prometheus}], overrides: [{match: {metric: REQUEST_COUNT, mode: CLIENT}, disabled: false, tagOverrides: {host: {value: request.host}, tier: {value: "'gold'"}, app: {operation: REMOVE}}}]}]`,
    nothing: '{}',
  },
  bad: [
    ['a percentage above 100', '{tracing: [{randomSamplingPercentage: 101}]}', 'spec.tracing[0].randomSamplingPercentage', /from 0 to 100/],
    ['a provider without a name', '{accessLogging: [{providers: [{name: ""}]}]}', 'spec.accessLogging[0].providers[0].name', /not empty/],
    ['an unknown mode', '{accessLogging: [{match: {mode: INBOUND}}]}', 'spec.accessLogging[0].match.mode', /expected one of CLIENT/],
    ['an unknown metric', '{metrics: [{overrides: [{match: {metric: REQUESTS}}]}]}', 'spec.metrics[0].overrides[0].match.metric', /expected one of ALL_METRICS/],
    ['a label without a value', '{metrics: [{overrides: [{tagOverrides: {a: {operation: UPSERT}}}]}]}', 'spec.metrics[0].overrides[0].tagOverrides.a.value', /UPSERT needs it/],
    ['a tag of two kinds', '{tracing: [{customTags: {a: {literal: {value: b}, header: {name: c}}}}]}', 'spec.tracing[0].customTags.a', /found literal and header/],
    ['a literal that is empty', '{tracing: [{customTags: {a: {literal: {value: ""}}}}]}', 'spec.tracing[0].customTags.a.literal.value', /not empty/],
  ],
  warned: [
    ['a label that no formatter says', '{metrics: [{overrides: [{tagOverrides: {a: {value: "has(request.host)"}}}]}]}', 'spec.metrics[0].overrides[0].tagOverrides.a.value', /found has\(request\.host\), which is not acted on: expected a text in quotes, one of request\.host/],
    ['a reporting interval', '{metrics: [{reportingInterval: 5s}]}', 'spec.metrics[0].reportingInterval', /not acted on|ignored/],
  ],
});

const SUM = 'a'.repeat(64);

specCases({
  apiVersion: 'extensions.istio.io/v1alpha1',
  kind: 'WasmPlugin',
  good: {
    'a plugin in full': `{selector: {matchLabels: {app: a}}, url: "https://a.example/x.wasm", sha256: ${SUM}, pluginConfig: {a: [1, {b: c}]}, pluginName: p, phase: AUTHN, priority: -10, failStrategy: FAIL_OPEN, vmConfig: {env: [{name: A, value: b}, {name: C, valueFrom: HOST}]}, match: [{mode: SERVER, ports: [{number: 80}]}], type: HTTP}`,
    'a file': '{url: "file:///opt/x.wasm"}',
  },
  bad: [
    ['no url', '{phase: AUTHN}', 'spec.url', /required/],
    ['a url of another kind', '{url: "ftp://a/x.wasm"}', 'spec.url', /expected file:\/\/, http:\/\//],
    ['a checksum that is none', '{url: "https://a/x", sha256: abc}', 'spec.sha256', /64 digits/],
    ['an unknown phase', '{url: "https://a/x", phase: AUTH}', 'spec.phase', /did you mean AUTHN/],
    ['a priority that is no number', '{url: "https://a/x", priority: high}', 'spec.priority', /whole number/],
    ['a variable twice', '{url: "https://a/x", vmConfig: {env: [{name: A}, {name: A}]}}', 'spec.vmConfig.env[1].name', /found "A" again/],
    ['a value from the host and here', '{url: "https://a/x", vmConfig: {env: [{name: A, valueFrom: HOST, value: b}]}}', 'spec.vmConfig.env[0].value', /expected none/],
    ['a port that is none', '{url: "https://a/x", match: [{ports: [{number: 0}]}]}', 'spec.match[0].ports[0].number', /from 1 to 65535/],
    ['a selector and a target', '{url: "https://a/x", selector: {matchLabels: {a: b}}, targetRefs: [{kind: Service, name: a}]}', 'spec.targetRefs', /found selector and targetRefs/],
  ],
});
