{{/* Where Redis is. */}}

{{- define "specrouter.redis.check" -}}
{{- $r := .Values.redis -}}
{{- $ways := 0 -}}
{{- if $r.url }}{{ $ways = add1 $ways }}{{ end -}}
{{- if $r.existingSecret.name }}{{ $ways = add1 $ways }}{{ end -}}
{{- if $r.bundled.enabled }}{{ $ways = add1 $ways }}{{ end -}}
{{- if ne (int $ways) 1 }}
{{- fail "redis: set one of redis.url, redis.existingSecret.name and redis.bundled.enabled" }}
{{- end }}
{{- if and $r.tls.secretName $r.url (not (hasPrefix "rediss" $r.url)) }}
{{- fail "redis.tls.secretName: redis.url must begin with rediss, that means TLS" }}
{{- end }}
{{- if and $r.kvCheckpoints.enabled $r.existingSecret.name (not $r.kvCheckpoints.existingSecret) }}
{{- fail "redis.kvCheckpoints.existingSecret: required with redis.existingSecret, whose URL is not known here" }}
{{- end }}
{{- if and $r.kvCheckpoints.enabled $r.tls.secretName (not $r.kvCheckpoints.existingSecret) }}
{{- fail "redis.kvCheckpoints.existingSecret: required with redis.tls.secretName, whose files levels do not have: a Secret with url, key and ca.crt (docs/security.md)" }}
{{- end }}
{{- end }}

{{/* The Secret with the URL. */}}
{{- define "specrouter.redis.secret" -}}
{{- .Values.redis.existingSecret.name | default (printf "%s-redis" (include "specrouter.fullname" .)) }}
{{- end }}

{{/* redis.url with the paths of the certificates that it needs. */}}
{{- define "specrouter.redis.url" -}}
{{- $r := .Values.redis -}}
{{- $r.url -}}
{{- if $r.tls.secretName -}}
{{- contains "?" $r.url | ternary "&" "?" -}}
ssl_ca_certs=/etc/specrouter/redis-tls/ca.crt
{{- if $r.tls.clientCertificate -}}
&ssl_certfile=/etc/specrouter/redis-tls/tls.crt&ssl_keyfile=/etc/specrouter/redis-tls/tls.key
{{- end -}}
{{- end -}}
{{- end }}

{{/* The password of the bundled Valkey: as given, as it was, or new. */}}
{{- define "specrouter.redis.password" -}}
{{- $kept := list . (include "specrouter.redis.secret" .) "password" -}}
{{- .Values.redis.bundled.password | default (include "specrouter.kept" $kept) -}}
{{- end }}

{{/* A random value of a Secret of ours: as it was, or new. Call with (list $ secret key). */}}
{{- define "specrouter.kept" -}}
{{- $there := lookup "v1" "Secret" (index . 0).Release.Namespace (index . 1) -}}
{{- if and $there (hasKey ($there.data | default dict) (index . 2)) -}}
{{- index $there.data (index . 2) | b64dec -}}
{{- else -}}
{{- randAlphaNum 32 -}}
{{- end -}}
{{- end }}

{{/* The Secret with what levels need to keep KV in Redis; empty: none. */}}
{{- define "specrouter.kv.secret" -}}
{{- if .Values.redis.kvCheckpoints.enabled -}}
{{- .Values.redis.kvCheckpoints.existingSecret | default (printf "%s-kv" (include "specrouter.fullname" .)) -}}
{{- end -}}
{{- end }}

{{- define "specrouter.redis.environment" -}}
- name: SPECROUTER_REDIS_URL
  valueFrom:
    secretKeyRef:
      name: {{ include "specrouter.redis.secret" . }}
      key: {{ empty .Values.redis.existingSecret.name | ternary "url" .Values.redis.existingSecret.key }}
{{- end }}

{{- define "specrouter.redis.mount" -}}
{{- if .Values.redis.tls.secretName }}
- {name: redis-tls, mountPath: /etc/specrouter/redis-tls, readOnly: true}
{{- end }}
{{- end }}

{{- define "specrouter.redis.volume" -}}
{{- with .Values.redis.tls.secretName }}
- name: redis-tls
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- end }}
