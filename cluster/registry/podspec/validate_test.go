package podspec

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// podOf gives a pod with the spec, defaulted as the API would.
func podOf(t *testing.T, spec string) *corev1.Pod {
	t.Helper()
	pod := &corev1.Pod{}
	pod.Name, pod.Namespace = "p", "default"
	if err := yaml.Unmarshal([]byte(spec), &pod.Spec); err != nil {
		t.Fatalf("%v in %s", err, spec)
	}
	SetPodDefaults(pod)
	return pod
}

func diffErrors(t *testing.T, got field.ErrorList, want []string) {
	t.Helper()
	var texts []string
	for _, e := range got {
		texts = append(texts, e.Error())
	}
	if strings.Join(texts, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n  %s\nwant\n  %s", strings.Join(texts, "\n  "), strings.Join(want, "\n  "))
	}
}

const (
	labelRule     = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
	subdomainRule = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
)

func TestValidatePod(t *testing.T) {
	for _, c := range []struct {
		name, spec string
		want       []string
	}{
		{"good", `{containers: [{name: a, image: b}]}`, nil},
		{"everything at once", `
serviceAccountName: sa
volumes:
- {name: e, emptyDir: {sizeLimit: 1Gi}}
- {name: c, configMap: {name: c, items: [{key: k, path: a/b, mode: 0600}]}}
- {name: s, secret: {secretName: s, optional: true}}
- {name: d, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: "metadata.labels['a']"}}, {path: cpu, resourceFieldRef: {containerName: a, resource: limits.cpu, divisor: 1m}}]}}
- {name: h, hostPath: {path: /tmp, type: DirectoryOrCreate}}
- {name: pvc, persistentVolumeClaim: {claimName: x}}
- {name: p, projected: {sources: [{serviceAccountToken: {path: token}}, {configMap: {name: c}}]}}
initContainers:
- {name: i, image: b, restartPolicy: Always, readinessProbe: {tcpSocket: {port: 80}}}
containers:
- name: a
  image: b
  ports: [{containerPort: 80, name: http}]
  env: [{name: A.B-c, value: x}, {name: N, valueFrom: {fieldRef: {fieldPath: status.podIP}}}, {name: K, valueFrom: {secretKeyRef: {name: s, key: k}}}]
  envFrom: [{prefix: P_, configMapRef: {name: c}}]
  volumeMounts: [{name: e, mountPath: /e}, {name: c, mountPath: /c, subPath: a/b}]
  resources: {requests: {cpu: 100m, example.com/gpu: 1}, limits: {memory: 1Gi, example.com/gpu: 1}}
  livenessProbe: {httpGet: {port: http}}
  lifecycle: {preStop: {sleep: {seconds: 5}}}
  securityContext: {runAsUser: 1000, capabilities: {add: [NET_ADMIN]}, seccompProfile: {type: RuntimeDefault}}
affinity:
  nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: a, operator: In, values: [b]}, {key: c, operator: Gt, values: ["1"]}]}]}}
  podAntiAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 1, podAffinityTerm: {topologyKey: kubernetes.io/hostname, labelSelector: {}}}]}
tolerations: [{operator: Exists}, {key: a, value: b, effect: NoExecute, tolerationSeconds: 3}]
topologySpreadConstraints: [{maxSkew: 1, topologyKey: zone, whenUnsatisfiable: DoNotSchedule, labelSelector: {}}]
hostAliases: [{ip: 10.0.0.1, hostnames: [a.b]}]
dnsConfig: {searches: [a.b, .], options: [{name: ndots, value: "2"}]}
readinessGates: [{conditionType: example.com/ready}]
`, nil},
		{"no containers", `{}`, []string{`spec.containers: Required value`}},
		{"names", `{containers: [{name: A_b, image: b}, {image: b}, {name: c, image: b}, {name: c}]}`, []string{
			`spec.containers[0].name: Invalid value: "A_b": ` + labelRule,
			`spec.containers[1].name: Required value`,
			`spec.containers[3].image: Required value`,
			`spec.containers[3].name: Duplicate value: "c"`,
		}},
		{"long name", `{containers: [{name: ` + strings.Repeat("a", 64) + `, image: b}]}`, []string{
			`spec.containers[0].name: Invalid value: "` + strings.Repeat("a", 64) + `": must be no more than 63 characters`,
		}},
		{"image with space", `{containers: [{name: a, image: " b"}]}`, []string{
			`spec.containers[0].image: Invalid value: " b": must not have leading or trailing whitespace`,
		}},
		{"init container name and probe", `{initContainers: [{name: init-myService, image: b}, {name: a, image: b, livenessProbe: {exec: {command: [x]}}}], containers: [{name: a, image: b}]}`, []string{
			`spec.initContainers[0].name: Invalid value: "init-myService": ` + labelRule,
			`spec.initContainers[1].name: Duplicate value: "a"`,
			`spec.initContainers[1].livenessProbe: Forbidden: may not be set for init containers without restartPolicy=Always`,
		}},
		{"ports", `{containers: [{name: a, image: b, ports: [{containerPort: 0}, {containerPort: 70000, name: UP, protocol: X}, {containerPort: 1, hostPort: 80}, {containerPort: 2, hostPort: 80}]}]}`, []string{
			`spec.containers[0].ports[0].containerPort: Required value`,
			`spec.containers[0].ports[1].name: Invalid value: "UP": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)`,
			`spec.containers[0].ports[1].name: Invalid value: "UP": must contain at least one letter (a-z)`,
			`spec.containers[0].ports[1].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive`,
			`spec.containers[0].ports[1].protocol: Unsupported value: "X": supported values: "TCP", "UDP", "SCTP"`,
			`spec.containers[0].ports[3].hostPort: Duplicate value: "TCP//80"`,
		}},
		{"env", `{containers: [{name: a, image: b, env: [{value: x}, {name: "a=b"}, {name: c, valueFrom: {}}, {name: d, value: x, valueFrom: {fieldRef: {fieldPath: spec.foo}}}, {name: e, valueFrom: {fieldRef: {fieldPath: metadata.labels}, configMapKeyRef: {name: x, key: "a b"}}}]}]}`, []string{
			`spec.containers[0].env[0].name: Required value`,
			`spec.containers[0].env[1].name: Invalid value: "a=b": a valid environment variable name must consist only of printable ASCII characters other than '='`,
			"spec.containers[0].env[2].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`",
			`spec.containers[0].env[3].valueFrom.fieldRef.fieldPath: Invalid value: "spec.foo": error converting fieldPath: field label not supported: spec.foo`,
			"spec.containers[0].env[3].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty",
			`spec.containers[0].env[4].valueFrom.fieldRef.fieldPath: Unsupported value: "metadata.labels": supported values: "metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs"`,
			`spec.containers[0].env[4].valueFrom.configMapKeyRef.key: Invalid value: "a b": a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')`,
			`spec.containers[0].env[4].valueFrom: Invalid value: "": may not have more than one field specified at a time`,
		}},
		{"envFrom", `{containers: [{name: a, image: b, envFrom: [{}, {configMapRef: {}}]}]}`, []string{
			"spec.containers[0].envFrom: Invalid value: \"\": must specify one of: `configMapRef` or `secretRef`",
			`spec.containers[0].envFrom[1].configMapRef.name: Required value`,
		}},
		{"mounts", `{volumes: [{name: v}], containers: [{name: a, image: b, volumeMounts: [{name: w, mountPath: /w}, {name: v}, {name: v, mountPath: /w}, {name: v, mountPath: /x, subPath: ../y, subPathExpr: z}, {name: v, mountPath: /z, mountPropagation: Bidirectional}]}]}`, []string{
			`spec.containers[0].volumeMounts[0].name: Not found: "w"`,
			`spec.containers[0].volumeMounts[1].mountPath: Required value`,
			`spec.containers[0].volumeMounts[2].mountPath: Invalid value: "/w": must be unique`,
			`spec.containers[0].volumeMounts.subPath: Invalid value: "../y": must not contain '..'`,
			`spec.containers[0].volumeMounts[3].subPathExpr: Invalid value: "z": subPathExpr and subPath are mutually exclusive`,
			`spec.containers[0].volumeMounts.mountPropagation: Forbidden: Bidirectional mount propagation is available only to privileged containers`,
		}},
		{"volumes", `{volumes: [{name: a, emptyDir: {}, hostPath: {path: /x}}, {name: a, secret: {}}, {name: c, configMap: {defaultMode: 512}}, {name: d, downwardAPI: {items: [{path: ../x}]}}, {name: h, hostPath: {path: /a/../b, type: Dir}}, {configMap: {name: x, items: [{path: ..x}]}}], containers: [{name: a, image: b}]}`, []string{
			`spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type`,
			`spec.volumes[1].secret.secretName: Required value`,
			`spec.volumes[1].name: Duplicate value: "a"`,
			`spec.volumes[2].configMap.name: Required value`,
			`spec.volumes[2].configMap.defaultMode: Invalid value: 512: must be a number between 0 and 0777 (octal), both inclusive`,
			`spec.volumes[3].downwardAPI.path: Invalid value: "../x": must not contain '..'`,
			`spec.volumes[3].downwardAPI: Required value: one of fieldRef and resourceFieldRef is required`,
			`spec.volumes[4].hostPath.path: Invalid value: "/a/../b": must not contain '..'`,
			`spec.volumes[4].hostPath.type: Unsupported value: "Dir": supported values: "", "DirectoryOrCreate", "Directory", "FileOrCreate", "File", "Socket", "CharDevice", "BlockDevice"`,
			`spec.volumes[5].configMap.items[0].key: Required value`,
			`spec.volumes[5].configMap.items[0].path: Invalid value: "..x": must not start with '..'`,
			`spec.volumes[5].name: Required value`,
		}},
		{"token without account", `{volumes: [{name: a, projected: {sources: [{configMap: {name: c}}, {serviceAccountToken: {path: t}}]}}], containers: [{name: a, image: b}]}`, []string{
			`spec.volumes[0].projected.sources[1].serviceAccountToken: Forbidden: must not be specified when serviceAccountName is not set`,
		}},
		{"projected", `{serviceAccountName: sa, volumes: [{name: a, projected: {sources: [{serviceAccountToken: {path: t, expirationSeconds: 1}}, {configMap: {name: c, items: [{key: k, path: t}]}, secret: {name: s}}]}}], containers: [{name: a, image: b}]}`, []string{
			`spec.volumes[0].projected.sources[0].serviceAccountToken.expirationSeconds: Invalid value: 1: may not specify a duration less than 10 minutes`,
			`spec.volumes[0].projected.sources[1].configMap: Forbidden: may not specify more than 1 volume type`,
		}},
		{"resources", `{containers: [{name: a, image: b, resources: {limits: {cpu: 100m, memory: "-1"}, requests: {cpu: 200m, foo: 1, example.com/x: 1, hugepages-2Mi: 3Mi}}}]}`, []string{
			`spec.containers[0].resources.limits[memory]: Invalid value: "-1": must be greater than or equal to 0`,
			`spec.containers[0].resources.requests: Invalid value: "200m": must be less than or equal to cpu limit of 100m`,
			`spec.containers[0].resources.limits: Required value: Limit must be set for non overcommitable resources`,
			`spec.containers[0].resources.requests[foo]: Invalid value: "foo": must be a standard resource type or fully qualified`,
			`spec.containers[0].resources.requests[foo]: Invalid value: "foo": must be a standard resource for containers`,
			`spec.containers[0].resources.requests[hugepages-2Mi]: Invalid value: "3Mi": 3Mi is not positive integer multiple of 2Mi`,
			`spec.containers[0].resources.limits: Required value: Limit must be set for non overcommitable resources`,
			`spec.containers[0].resources.requests[memory]: Invalid value: "-1": must be greater than or equal to 0`,
		}},
		{"probes", `{containers: [{name: a, image: b, livenessProbe: {successThreshold: 2, httpGet: {port: 0}, exec: {command: [x]}}, readinessProbe: {}, startupProbe: {tcpSocket: {port: A}, periodSeconds: -1}, lifecycle: {preStop: {exec: {}}}}]}`, []string{
			`spec.containers[0].lifecycle.preStop.exec.command: Required value`,
			`spec.containers[0].livenessProbe.httpGet: Forbidden: may not specify more than 1 handler type`,
			`spec.containers[0].livenessProbe.successThreshold: Invalid value: 2: must be 1`,
			`spec.containers[0].readinessProbe: Required value: must specify a handler type`,
			`spec.containers[0].startupProbe.tcpSocket.port: Invalid value: "A": must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)`,
			`spec.containers[0].startupProbe.tcpSocket.port: Invalid value: "A": must contain at least one letter (a-z)`,
			`spec.containers[0].startupProbe.periodSeconds: Invalid value: -1: must be greater than or equal to 0`,
		}},
		{"enums", `{containers: [{name: a, image: b, imagePullPolicy: Maybe, terminationMessagePolicy: X}], restartPolicy: Sometimes, dnsPolicy: X}`, []string{
			`spec.containers[0].terminationMessagePolicy: Unsupported value: "X": supported values: "File", "FallbackToLogsOnError"`,
			`spec.containers[0].imagePullPolicy: Unsupported value: "Maybe": supported values: "Always", "IfNotPresent", "Never"`,
			`spec.restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "OnFailure", "Never"`,
			`spec.dnsPolicy: Unsupported value: "X": supported values: "ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"`,
		}},
		{"dns", `{containers: [{name: a, image: b}], dnsPolicy: None}`, []string{
			"spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None",
		}},
		{"affinity", `{containers: [{name: a, image: b}], affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: {nodeSelectorTerms: [{matchExpressions: [{key: a, operator: NotExists}, {key: b, operator: In}]}]}}, podAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{labelSelector: {}}]}}}`, []string{
			`spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[0].operator: Invalid value: "NotExists": not a valid selector operator`,
			"spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchExpressions[1].values: Required value: must be specified when `operator` is 'In' or 'NotIn'",
			`spec.affinity.podAffinity.requiredDuringSchedulingIgnoredDuringExecution[0].topologyKey: Required value: can not be empty`,
		}},
		{"tolerations", `{containers: [{name: a, image: b}], tolerations: [{value: x}, {key: a, operator: Exists, value: x}, {key: a, tolerationSeconds: 1, effect: X}]}`, []string{
			"spec.tolerations[0].operator: Invalid value: \"\": operator must be Exists when `key` is empty, which means \"match all values and all keys\"",
			`spec.tolerations[1].operator: Invalid value: {"key":"a","operator":"Exists","value":"x"}: value must be empty when ` + "`operator` is 'Exists'",
			"spec.tolerations[2].effect: Invalid value: \"X\": effect must be 'NoExecute' when `tolerationSeconds` is set",
			`spec.tolerations[2].effect: Unsupported value: "X": supported values: "NoSchedule", "PreferNoSchedule", "NoExecute"`,
		}},
		{"security", `{hostNetwork: true, hostPID: true, shareProcessNamespace: true, containers: [{name: a, image: b, ports: [{containerPort: 80, hostPort: 81}], securityContext: {privileged: true, allowPrivilegeEscalation: false, runAsUser: -1, seccompProfile: {type: Localhost}}}], securityContext: {sysctls: [{name: net.ipv4.ip_forward, value: "1"}, {name: A}]}}`, []string{
			`spec.containers[0].securityContext.runAsUser: Invalid value: -1: must be between 0 and 2147483647, inclusive`,
			`spec.containers[0].securityContext.seccompProfile.localhostProfile: Required value: must be set when seccomp type is Localhost`,
			"spec.containers[0].securityContext: Invalid value: {\"privileged\":true,\"runAsUser\":-1,\"allowPrivilegeEscalation\":false,\"seccompProfile\":{\"type\":\"Localhost\"}}: cannot set `allowPrivilegeEscalation` to false and `privileged` to true",
			"spec.containers[0].ports[0].hostPort: Invalid value: 81: must match `containerPort` when `hostNetwork` is true",
			`spec.securityContext.shareProcessNamespace: Invalid value: true: ShareProcessNamespace and HostPID cannot both be enabled`,
			`spec.securityContext.sysctls[0].name: Invalid value: "net.ipv4.ip_forward": may not be specified when 'hostNetwork' is true`,
			`spec.securityContext.sysctls[1].name: Invalid value: "A": must have at most 253 characters and match regex ([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?`,
		}},
		{"references", `{containers: [{name: a, image: b}], nodeName: A, serviceAccountName: B, hostname: a.b, activeDeadlineSeconds: 0, priorityClassName: C_}`, []string{
			`spec.serviceAccountName: Invalid value: "B": ` + subdomainRule,
			`spec.nodeName: Invalid value: "A": ` + subdomainRule,
			`spec.hostname: Invalid value: "a.b": must not contain dots`,
			`spec.priorityClassName: Invalid value: "C_": ` + subdomainRule,
			`spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive`,
		}},
		{"spread", `{containers: [{name: a, image: b}], topologySpreadConstraints: [{maxSkew: 0, whenUnsatisfiable: X}, {maxSkew: 1, topologyKey: z, whenUnsatisfiable: ScheduleAnyway, minDomains: 2}, {maxSkew: 1, topologyKey: z, whenUnsatisfiable: ScheduleAnyway}]}`, []string{
			`spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero`,
			`spec.topologySpreadConstraints[0].topologyKey: Required value: can not be empty`,
			`spec.topologySpreadConstraints[0].whenUnsatisfiable: Unsupported value: "X": supported values: "DoNotSchedule", "ScheduleAnyway"`,
			`spec.topologySpreadConstraints[1].minDomains: Invalid value: 2: can only use minDomains if whenUnsatisfiable=DoNotSchedule, not ScheduleAnyway`,
			`spec.topologySpreadConstraints[2].{topologyKey, whenUnsatisfiable}: Duplicate value: "{z, ScheduleAnyway}"`,
		}},
		{"pod resources", `{resources: {limits: {cpu: 1}, requests: {cpu: 100m}}, containers: [{name: a, image: b, resources: {requests: {cpu: 500m}, limits: {cpu: 2}}}]}`, []string{
			`spec.resources.requests[cpu]: Invalid value: "100m": must be greater than or equal to aggregate container requests of 500m`,
			`spec.containers[0].resources.limits[cpu]: Invalid value: "2": must be less than or equal to pod limits of 1`,
		}},
		{"restart rules", `{initContainers: [{name: i, image: b, restartPolicy: Never, restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [1]}}]}, {name: s, image: b, restartPolicy: Always, restartPolicyRules: [{action: RestartAllContainers, exitCodes: {operator: NotIn, values: [0]}}]}], containers: [{name: a, image: b, restartPolicy: OnFailure, restartPolicyRules: [{action: RestartAllContainers, exitCodes: {operator: In, values: [42]}}]}]}`, nil},
		{"wrong restart rules", `{containers: [{name: a, image: b, restartPolicy: Sometimes}, {name: c, image: b, restartPolicyRules: [{action: Reboot}, {action: Restart, exitCodes: {operator: Like, values: [1]}}]}]}`, []string{
			`spec.containers[0].restartPolicy: Unsupported value: "Sometimes": supported values: "Always", "Never", "OnFailure"`,
			`spec.containers[1].restartPolicy: Required value: must specify restartPolicy when restart rules are used`,
			`spec.containers[1].restartPolicyRules[0].action: Unsupported value: "Reboot": supported values: "Restart", "RestartAllContainers"`,
			`spec.containers[1].restartPolicyRules[0].exitCodes: Required value: must be specified`,
			`spec.containers[1].restartPolicyRules[1].exitCodes.operator: Unsupported value: "Like": supported values: "In", "NotIn"`,
		}},
		{"never possible", `{os: {name: windows}, resourceClaims: [{name: x}], containers: [{name: a, image: b, volumeMounts: []}]}`, []string{
			`spec.resourceClaims: Forbidden: dynamic resource allocation is not supported by skiff`,
		}},
	} {
		t.Run(c.name, func(t *testing.T) { diffErrors(t, ValidatePod(podOf(t, c.spec)), c.want) })
	}
}

func TestValidateTemplate(t *testing.T) {
	template := func(spec string) *corev1.PodTemplateSpec {
		tpl := &corev1.PodTemplateSpec{}
		if err := yaml.Unmarshal([]byte(spec), tpl); err != nil {
			t.Fatal(err)
		}
		SetTemplateDefaults(tpl)
		return tpl
	}
	bad := template(`{metadata: {labels: {"a b": c}}, spec: {hostNetwork: true, containers: [{name: a, ports: [{containerPort: 80}]}], ephemeralContainers: [{name: e, image: b}]}}`)
	diffErrors(t, ValidateTemplate(bad, nil, field.NewPath("spec", "template"), Options{}), []string{
		`spec.template.labels: Invalid value: "a b": name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')`,
		`spec.template.spec.containers[0].image: Required value`,
		`spec.template.spec.ephemeralContainers: Forbidden: ephemeral containers not allowed in pod template`,
	})
	diffErrors(t, ValidateTemplate(bad, bad.DeepCopy(), field.NewPath("spec", "template"), Options{}), nil)

	claim := &corev1.PersistentVolumeClaim{}
	claim.Name = "data"
	withClaim := template(`{spec: {containers: [{name: a, image: b, volumeMounts: [{name: data, mountPath: /d}]}]}}`)
	diffErrors(t, ValidateTemplate(withClaim, nil, field.NewPath("spec", "template"), Options{ClaimedVolumes: []*corev1.PersistentVolumeClaim{claim}}), nil)
	diffErrors(t, ValidateTemplate(withClaim, nil, field.NewPath("spec", "template"), Options{}), []string{
		`spec.template.spec.containers[0].volumeMounts[0].name: Not found: "data"`,
	})
}
