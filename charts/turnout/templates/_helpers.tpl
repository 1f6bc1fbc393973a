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
