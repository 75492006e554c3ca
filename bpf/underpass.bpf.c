/* One object with all programs; the parts are headers so that they share maps without extern declarations. */
#include "vmlinux.h"
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "consts.h"
#include "structs.h"
#include "http-structs.h"
#include "maps.h"
#include "http-maps.h"

/* Set before loading. */
const volatile __u32 sidecar_uid = SIDECAR_UID;
/* Of the cgroup v2 hierarchy: of pods that have no cgroup of their own. */
const volatile __u64 root_cgroup_id = 1;

/* Keep types that only user space reads in the object's BTF. */
const volatile enum counter counter_type;
const volatile enum event_type event_type_type;
const volatile enum pod_mode pod_mode_type;
const volatile enum pod_flag pod_flag_type;
const volatile enum acceleration acceleration_type;
const volatile enum mark mark_type;
const volatile enum clearance_kind clearance_kind_type;
const volatile enum policy_state policy_state_type;
const volatile enum service_kind service_kind_type;
const volatile struct event event_type_layout;
const volatile enum flow_limit flow_limit_type;
const volatile enum flow_way flow_way_type;
const volatile struct flow_record flow_record_layout;
const volatile enum capture capture_type;
const volatile enum watcher watcher_type;
const volatile enum watch_what watch_what_type;
const volatile enum socket_flag socket_flag_type;
const volatile struct watch_event watch_event_layout;
const volatile struct watch_request watch_request_layout;
const volatile struct watch_payload watch_payload_layout;
const volatile enum http_fault http_fault_type;
const volatile enum http_method http_method_type;
const volatile enum http_path_kind http_path_kind_type;
const volatile enum http_value_kind http_value_kind_type;
const volatile enum http_judgement http_judgement_type;
const volatile enum http_pod_state http_pod_state_type;
const volatile enum http_end http_end_type;
const volatile enum http_ending http_ending_type;
const volatile enum http_ejected_for http_ejected_for_type;
const volatile enum http_channel_state http_channel_state_type;
const volatile enum http_unknown http_unknown_type;
const volatile enum http_use http_use_type;
const volatile enum http_untold http_untold_type;
const volatile struct http_event http_event_layout;
const volatile enum http_class_flag http_class_flag_type;
const volatile enum http_trace http_trace_type;
const volatile enum http_balance http_balance_type;

#include "helpers.h"
#include "place.h"
#include "tuple.h"
#include "brief.h"
#include "watch.h"
#include "flow.h"
#include "policy.h"
#include "steer.h"

#include "resolve.h"
#include "source.h"
#include "connect.h"
#include "http-parse.h"
#include "http-outlier.h"
#include "http-channel.h"
#include "http-bound.h"
#include "outlier.h"
#include "pair.h"
#include "move.h"
#include "http.h"
#include "probe.h"
#include "root.h"

char _license[] SEC("license") = "GPL";
