{{/* OpenTelemetry's own variables of a router. */}}
{{- define "specrouter.otel" -}}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ include "specrouter.otel.endpoint" . | quote }}
- {name: OTEL_METRIC_EXPORT_INTERVAL, value: {{ .Values.otel.intervalMs | quote }}}
- {name: OTEL_SERVICE_NAME, value: specrouter-router}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: specrouter.family={{ .Values.family.name }},k8s.namespace.name={{ .Release.Namespace }},service.instance.id=$(POD_NAME)
{{ include "specrouter.otel.token" . }}
{{- if .Values.tls.operatorSecretName }}
- {name: OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE, value: /etc/specrouter/tls/ca.crt}
{{- end }}
- {name: OTEL_EXPORTER_OTLP_METRICS_HEADERS, value: authorization=Bearer%20$(SPECROUTER_OTLP_TOKEN)}
{{- end }}

{{/* What a push must show. */}}
{{- define "specrouter.otel.token" -}}
- name: SPECROUTER_OTLP_TOKEN
  valueFrom: {secretKeyRef: {name: {{ include "specrouter.otel.secret" . }}, key: token}}
{{- end }}

{{/* The Secret with it. */}}
{{- define "specrouter.otel.secret" -}}
{{- .Values.otel.existingSecret | default (printf "%s-otlp" (include "specrouter.fullname" .)) -}}
{{- end }}

{{/* Where metrics are pushed: the operator of the namespace, or a collector. */}}
{{- define "specrouter.otel.endpoint" -}}
{{- .Values.otel.endpoint | default (printf "%s://%s-operator.%s.svc:4317" (empty .Values.tls.operatorSecretName | ternary "http" "https") (include "specrouter.fullname" .) .Release.Namespace) }}
{{- end }}
