/** Mirroring: pilot's answers against those of a recorded istiod. */
import { rewrite, testScenario, type JsonObject } from './testing/istiod.js';

testScenario({
  scenario: 'mirror',
  session: 'sleep-v1-6d9f-sotw',
  // Istio documents that a mirrored request's host gains `-shadow`; this istiod's DISABLE_SHADOW_HOST_SUFFIX, on by
  // default, takes that back. The documented behaviour is what applications were written for.
  istiod: (json) =>
    rewrite(json, (object) => {
      if ('disable_shadow_host_suffix_append' in object) (object as JsonObject)['disable_shadow_host_suffix_append'] = false;
      return object;
    }),
});
