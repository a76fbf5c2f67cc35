{{/* Parts of NetworkPolicies. */}}

{{/* Pods of a component of this release, as a peer. Call with (list $ "component"). */}}
{{- define "specrouter.peer" -}}
- podSelector:
    matchLabels: {{- include "specrouter.selector" . | nindent 6 }}
{{- end }}

{{/* Pods of the family's levels, as a peer. */}}
{{- define "specrouter.levels" -}}
- podSelector:
    matchLabels: {specrouter.dev/family: {{ .Values.family.name }}}
{{- end }}

{{/* Ports of a rule. Call with a list. */}}
{{- define "specrouter.ports" -}}
ports:
{{- range . }}
  - {protocol: TCP, port: {{ . }}}
{{- end }}
{{- end }}

{{- define "specrouter.toDns" -}}
- ports:
    - {protocol: UDP, port: 53}
    - {protocol: TCP, port: 53}
  {{- with .Values.networkPolicy.dns.servers }}
  to: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{- define "specrouter.toApiServer" -}}
- {{ include "specrouter.ports" .Values.networkPolicy.apiServer.ports | nindent 2 }}
  to:
    {{- range .Values.networkPolicy.apiServer.cidrs }}
    - ipBlock: {cidr: {{ . }}}
    {{- end }}
{{- end }}

{{- define "specrouter.toRedis" -}}
{{- if .Values.redis.bundled.enabled }}
- {{ include "specrouter.ports" (list 6379) | nindent 2 }}
  to: {{- include "specrouter.peer" (list . "redis") | nindent 4 }}
{{- else }}
- {{ include "specrouter.ports" .Values.networkPolicy.redis.ports | nindent 2 }}
  {{- with .Values.networkPolicy.redis.servers }}
  to: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}
{{- end }}

{{/* To whom metrics are pushed. */}}
{{- define "specrouter.toMetrics" -}}
{{- if .Values.otel.endpoint }}
- {{ include "specrouter.ports" (list .Values.networkPolicy.collector.port) | nindent 2 }}
  {{- with .Values.networkPolicy.collector.servers }}
  to: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- else }}
- {{ include "specrouter.ports" (list 4317) | nindent 2 }}
  to: {{- include "specrouter.peer" (list . "operator") | nindent 4 }}
{{- end }}
{{- end }}

{{/* Who may read metrics on these ports. Call with (list $ ports). */}}
{{- define "specrouter.fromMonitoring" -}}
{{- $root := index . 0 -}}
- {{ include "specrouter.ports" (index . 1) | nindent 2 }}
  {{- with $root.Values.networkPolicy.monitoring }}
  from: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* Head of a policy. Call with (list $ "component"). */}}
{{- define "specrouter.policy" -}}
{{- $root := index . 0 -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ include "specrouter.fullname" $root }}-{{ index . 1 }}
  namespace: {{ $root.Release.Namespace }}
  labels: {{- include "specrouter.labels" . | nindent 4 }}
{{- end }}
