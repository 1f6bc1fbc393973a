{{/* Name of the application, as labels carry it. */}}
{{- define "turnout.name" -}}
turnout
{{- end -}}

{{/*
Prefix of everything that the chart creates: the release's name where that says turnout already,
RELEASE-turnout otherwise. 46 characters at most, so that what is appended stays a DNS label.
*/}}
{{- define "turnout.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 46 | trimSuffix "-" -}}
{{- else if contains "turnout" .Release.Name -}}
{{- .Release.Name | trunc 46 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-turnout" .Release.Name | trunc 46 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "turnout.operator.fullname" -}}
{{ include "turnout.fullname" . }}-operator
{{- end -}}

{{- define "turnout.router.fullname" -}}
{{ include "turnout.fullname" . }}-router
{{- end -}}

{{/* Labels that select pods: they must never change between versions of the chart. */}}
{{- define "turnout.selectorLabels" -}}
app.kubernetes.io/name: {{ include "turnout.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* Labels of everything that the chart creates. Add app.kubernetes.io/component beside them. */}}
{{- define "turnout.labels" -}}
{{ include "turnout.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* IMAGE:TAG of one component: (list $ .Values.router.image). */}}
{{- define "turnout.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{ $image.repository }}:{{ $image.tag | default $root.Chart.AppVersion }}
{{- end -}}

{{/* What is common to the pods of operator and router: (list $ "router" .Values.router). */}}
{{- define "turnout.podSpec" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := index . 2 -}}
{{- with $root.Values.imagePullSecrets }}
imagePullSecrets: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector: {{ toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations: {{ toYaml . | nindent 2 }}
{{- end }}
affinity:
  podAntiAffinity:
    # Replicas on different nodes where there are several; on one node they still start.
    preferredDuringSchedulingIgnoredDuringExecution:
      - weight: 100
        podAffinityTerm:
          topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels: {{ include "turnout.selectorLabels" $root | nindent 14 }}
              app.kubernetes.io/component: {{ $component }}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "turnout.podMetadata" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := index . 2 -}}
{{- $port := index . 3 -}}
labels: {{ include "turnout.labels" $root | nindent 2 }}
  app.kubernetes.io/component: {{ $component }}
annotations:
  prometheus.io/scrape: "true"
  prometheus.io/port: {{ $port | quote }}
  prometheus.io/path: /metrics
  {{- with $values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "turnout.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- define "turnout.podEnv" -}}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
# The root file system is read-only.
- name: PYTHONDONTWRITEBYTECODE
  value: "1"
{{- end -}}

{{/* Secret of what only routers know: the user's, or the chart's own. */}}
{{- define "turnout.router.peersSecret" -}}
{{ .Values.router.peers.secretName | default (printf "%s-peers" (include "turnout.router.fullname" .)) }}
{{- end -}}

{{/* Secret of what the routers' admin port asks for. A release that is older than the setting has no `admin`. */}}
{{- define "turnout.router.adminSecret" -}}
{{ (.Values.router.admin).tokenSecretName | default (printf "%s-admin" (include "turnout.router.fullname" .)) }}
{{- end -}}

{{/*
A Secret with one random value, which upgrades keep: (list $ NAME KEY). Where the cluster cannot be asked (`helm template`)
it is another one each time.
*/}}
{{- define "turnout.generatedSecret" -}}
{{- $root := index . 0 -}}
{{- $name := index . 1 -}}
{{- $key := index . 2 -}}
{{- $found := lookup "v1" "Secret" $root.Release.Namespace $name -}}
{{- $kept := get (get $found "data" | default dict) $key }}
---
apiVersion: v1
kind: Secret
metadata:
  name: {{ $name }}
  namespace: {{ $root.Release.Namespace }}
  labels: {{ include "turnout.labels" $root | nindent 4 }}
    app.kubernetes.io/component: router
type: Opaque
data:
  {{ $key }}: {{ $kept | default (randAlphaNum 48 | b64enc) | quote }}
{{ end -}}
