{{/* Names, labels and images. */}}

{{- define "specrouter.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "specrouter.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "specrouter.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "specrouter.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Labels of an object. Call with (list $ "component"). */}}
{{- define "specrouter.labels" -}}
{{- $root := index . 0 -}}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
app.kubernetes.io/part-of: specrouter
{{ include "specrouter.selector" . }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* What selects the pods of a component. Call with (list $ "component"). */}}
{{- define "specrouter.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "specrouter.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{/* An image's reference. Call with (list $ image). */}}
{{- define "specrouter.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- with $root.Values.global.imageRegistry | default $image.registry }}{{ . }}/{{ end -}}
{{ $image.repository }}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ $image.tag | default $root.Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "specrouter.pullSecrets" -}}
{{- with .Values.global.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The priority class of a component. Call with (list $ "component"). */}}
{{- define "specrouter.priority" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $named := (index $root.Values $component).priorityClassName -}}
{{- if $named }}
priorityClassName: {{ $named }}
{{- else if $root.Values.priorityClasses.create }}
priorityClassName: {{ include "specrouter.fullname" $root }}-{{ $component }}
{{- end }}
{{- end }}
