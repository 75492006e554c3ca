/** Istio's kinds that add to the service registry: ServiceEntry, WorkloadEntry, WorkloadGroup. */
import type { KubeObject } from '../object.js';

export interface WorkloadEntrySpec {
  /** An IP address, a host name (resolution DNS), or `unix:///path`. */
  address?: string;
  /** By the name of the service's port. */
  ports?: Record<string, number>;
  labels?: Record<string, string>;
  network?: string;
  /** `region/zone/subzone` */
  locality?: string;
  weight?: number;
  serviceAccount?: string;
}

export interface ServiceEntryPort {
  number: number;
  protocol?: string;
  name: string;
  targetPort?: number;
}

export interface ServiceEntry extends KubeObject {
  kind: 'ServiceEntry';
  spec: {
    hosts: string[];
    /** IP addresses or CIDR blocks. */
    addresses?: string[];
    ports?: ServiceEntryPort[];
    location?: 'MESH_EXTERNAL' | 'MESH_INTERNAL';
    resolution?: 'NONE' | 'STATIC' | 'DNS' | 'DNS_ROUND_ROBIN' | 'DYNAMIC_DNS';
    endpoints?: WorkloadEntrySpec[];
    /** In place of `endpoints`. */
    workloadSelector?: { labels?: Record<string, string> };
    exportTo?: string[];
    subjectAltNames?: string[];
  };
  status?: { addresses?: { value: string; host?: string }[] };
}

export interface WorkloadEntry extends KubeObject {
  kind: 'WorkloadEntry';
  spec: WorkloadEntrySpec;
}

/** Seconds are whole numbers. Exactly one of the four checks. */
export interface ReadinessProbe {
  initialDelaySeconds?: number;
  timeoutSeconds?: number;
  periodSeconds?: number;
  successThreshold?: number;
  failureThreshold?: number;
  httpGet?: { path?: string; port: number; host?: string; scheme?: string; httpHeaders?: { name: string; value?: string }[] };
  tcpSocket?: { host?: string; port: number };
  exec?: { command: string[] };
  grpc?: { port?: number; service?: string };
}

export interface WorkloadGroup extends KubeObject {
  kind: 'WorkloadGroup';
  spec: { metadata?: { labels?: Record<string, string>; annotations?: Record<string, string> }; template: WorkloadEntrySpec; probe?: ReadinessProbe };
}
