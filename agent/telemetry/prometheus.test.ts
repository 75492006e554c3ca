import assert from 'node:assert/strict';
import { test } from 'node:test';
import { PrometheusText } from './prometheus.js';

test('PrometheusText: samples of one family stand together and labels are escaped', () => {
  const text = new PrometheusText()
    .add('underpass_pods', 'gauge', 'Pods.', 1, { way: 'bpf' })
    .add('underpass_up', 'gauge', 'Up.', 1)
    .add('underpass_pods', 'gauge', 'Pods.', 18446744073709551615n, { way: 'a"b\\c\nd' });
  assert.equal(
    text.toString(),
    '# HELP underpass_pods Pods.\n# TYPE underpass_pods gauge\nunderpass_pods{way="bpf"} 1\nunderpass_pods{way="a\\"b\\\\c\\nd"} 18446744073709551615\n' +
      '# HELP underpass_up Up.\n# TYPE underpass_up gauge\nunderpass_up 1\n',
  );
});
