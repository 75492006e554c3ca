/** Istio's metrics as Prometheus reads them of a proxy or an agent. */
export interface Series {
  name: string;
  labels: Record<string, string>;
  value: number;
}

/** Counters, and of histograms how many values there were. */
export function seriesOf(text: string): Series[] {
  return text.split('\n').flatMap((line) => {
    const [, name, labels = '', value] = /^(istio_\w+)\{(.*)\} (\S+)$/.exec(line) ?? [];
    if (name === undefined || /_(?:bucket|sum)$/.test(name)) return [];
    return [{ name, labels: Object.fromEntries([...labels.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, key = '', text = '']) => [key, text])), value: Number(value) }];
  });
}
