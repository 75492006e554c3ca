/** Istio's telemetry.istio.io/Telemetry in full. */
import type { KubeObject } from '../object.js';
import type { PolicyTargetReference, WorkloadMode, WorkloadSelector } from './selectors.js';

export interface TelemetryTracing {
  match?: { mode?: WorkloadMode };
  providers?: { name: string }[];
  /** From 0 to 100. */
  randomSamplingPercentage?: number;
  disableSpanReporting?: boolean;
  customTags?: Record<
    string,
    { literal?: { value: string }; environment?: { name: string; defaultValue?: string }; header?: { name: string; defaultValue?: string }; formatter?: { value: string } }
  >;
  useRequestIdForTraceSampling?: boolean;
  enableIstioTags?: boolean;
  disableContextPropagation?: boolean;
}

export interface TelemetryMetrics {
  providers?: { name: string }[];
  overrides?: {
    match?: { metric?: string; customMetric?: string; mode?: WorkloadMode };
    disabled?: boolean;
    tagOverrides?: Record<string, { operation?: 'UPSERT' | 'REMOVE'; value?: string }>;
  }[];
  reportingInterval?: string;
}

export interface TelemetryAccessLogging {
  match?: { mode?: WorkloadMode };
  providers?: { name: string }[];
  disabled?: boolean;
  /** A CEL expression. */
  filter?: { expression?: string };
}

export interface Telemetry extends KubeObject {
  kind: 'Telemetry';
  spec?: {
    selector?: WorkloadSelector;
    targetRef?: PolicyTargetReference;
    targetRefs?: PolicyTargetReference[];
    tracing?: TelemetryTracing[];
    metrics?: TelemetryMetrics[];
    accessLogging?: TelemetryAccessLogging[];
  };
}
