/** Sizes of bpf/http-structs.h that decide whether something is the kernel's at all; a test compares them with the object's. */

export const HTTP_HOST_MAX = 64;
export const HTTP_PATH_MAX = 64;
export const HTTP_NAME_MAX = 32;
export const HTTP_VALUE_MAX = 40;
/** Header conditions of a rule. */
export const HTTP_CONDITIONS = 3;
/** Of a virtual host, or of a policy. */
export const HTTP_RULES_EACH = 64;
/** Destinations of a route. */
export const HTTP_SPLITS = 8;
export const HTTP_WEIGHT_TEXT = 32;
export const HTTP_ENDPOINT_TEXT = 160;

/** In the order of enum http_method; requests with others are Envoy's. */
export const HTTP_METHODS = ['GET', 'HEAD', 'POST', 'PUT', 'DELETE', 'PATCH', 'OPTIONS'] as const;
export type HttpMethod = (typeof HTTP_METHODS)[number];
