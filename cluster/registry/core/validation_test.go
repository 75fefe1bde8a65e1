package core

//lint:file-ignore SA1019 Endpoints are deprecated, and still served

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/skiff-sh/skiff/cluster/registry/registrytest"
)

func named[T any, P interface {
	*T
	metav1.Object
}](change ...func(P)) P {
	obj := P(new(T))
	obj.SetName("x")
	for _, c := range change {
		c(obj)
	}
	return obj
}

type secret = corev1.Secret

func typed(t corev1.SecretType, keys ...string) *secret {
	return named(func(s *secret) {
		s.Type, s.Data = t, map[string][]byte{}
		for _, k := range keys {
			s.Data[k] = []byte("{}")
		}
	})
}

func quantities(kv ...string) corev1.ResourceList {
	l := corev1.ResourceList{}
	for i := 0; i < len(kv); i += 2 {
		l[corev1.ResourceName(kv[i])] = resource.MustParse(kv[i+1])
	}
	return l
}

func claim(change ...func(*corev1.PersistentVolumeClaim)) *corev1.PersistentVolumeClaim {
	c := named(func(c *corev1.PersistentVolumeClaim) {
		c.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
		c.Spec.Resources.Requests = quantities("storage", "1Gi")
	})
	for _, f := range change {
		f(c)
	}
	return c
}

// betaClassed names the class as was done before spec.storageClassName.
func betaClassed(class string) func(*corev1.PersistentVolumeClaim) {
	return func(c *corev1.PersistentVolumeClaim) {
		c.Annotations = map[string]string{corev1.BetaStorageClassAnnotation: class}
	}
}

// A class may be moved from the annotation to the field.
func TestClassMovesFromTheAnnotation(t *testing.T) {
	for _, keep := range []bool{true, false} {
		old := claim(betaClassed("slow"))
		c := old.DeepCopy()
		c.Spec.StorageClassName = ptr.To("slow")
		if !keep {
			c.Annotations = nil
		}
		if errs := validateClaimUpdate(c, old); len(errs) > 0 {
			t.Errorf("annotation kept: %v: %v", keep, errs)
		}
	}
}

func volume(change ...func(*corev1.PersistentVolume)) *corev1.PersistentVolume {
	v := named(func(v *corev1.PersistentVolume) {
		v.Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
		v.Spec.Capacity = quantities("storage", "1Gi")
		v.Spec.HostPath = &corev1.HostPathVolumeSource{Path: "/data"}
	})
	for _, f := range change {
		f(v)
	}
	return v
}

func limits(item corev1.LimitRangeItem) *corev1.LimitRange {
	return named(func(l *corev1.LimitRange) { l.Spec.Limits = []corev1.LimitRangeItem{item} })
}

func subsets(s ...corev1.EndpointSubset) *corev1.Endpoints {
	return named(func(e *corev1.Endpoints) { e.Subsets = s })
}

func taints(t ...corev1.Taint) *corev1.Node {
	return named(func(n *corev1.Node) { n.Spec.Taints = t })
}

// TestCreateRefused tries what users get wrong, in the words they will search
// for.
func TestCreateRefused(t *testing.T) {
	f := newFixture(t)
	svc := func(change func(*corev1.ServiceSpec)) *corev1.Service {
		return service("x", func(s *corev1.Service) { change(&s.Spec) })
	}
	for _, c := range []struct {
		resource string
		obj      runtime.Object
		want     []string
	}{
		{"services", service("Upper"), []string{`metadata.name: Invalid value: "Upper": a lowercase RFC 1123 label must consist of`}},
		{"services", svc(func(s *corev1.ServiceSpec) { s.Ports = nil }), []string{"spec.ports: Required value"}},
		{"services", svc(func(s *corev1.ServiceSpec) { s.Ports = []corev1.ServicePort{{Port: 80}, {Port: 81}} }),
			[]string{"spec.ports[0].name: Required value", "spec.ports[1].name: Required value"}},
		{"services", svc(func(s *corev1.ServiceSpec) {
			s.Ports = []corev1.ServicePort{{Name: "a", Port: 80}, {Name: "a", Port: 80}}
		}),
			[]string{`spec.ports[1].name: Duplicate value: "a"`, `spec.ports[1]: Duplicate value: {"Name":"","Protocol":"TCP","AppProtocol":null,"Port":80,"TargetPort":0,"NodePort":0}`}},
		{"services", svc(func(s *corev1.ServiceSpec) { s.Ports[0].Port = 70000 }), []string{"spec.ports[0].port: Invalid value: 70000: must be between 1 and 65535, inclusive"}},
		{"services", svc(func(s *corev1.ServiceSpec) { s.Ports[0].TargetPort = intstr.FromString("no name") }), []string{"spec.ports[0].targetPort: Invalid value"}},
		{"services", svc(func(s *corev1.ServiceSpec) { s.Ports[0].NodePort = 30000 }), []string{"spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"}},
		{"services", svc(func(s *corev1.ServiceSpec) {
			s.Type = "NodePort"
			s.Ports = []corev1.ServicePort{{Name: "a", Port: 80, NodePort: 30000}, {Name: "b", Port: 81, NodePort: 30000}}
		}), []string{"spec.ports[1].nodePort: Duplicate value: 30000"}},
		{"services", svc(func(s *corev1.ServiceSpec) { s.Type = "Wrong" }), []string{`spec.type: Unsupported value: "Wrong": supported values: "ClusterIP", "ExternalName", "LoadBalancer", "NodePort"`}},
		{"services", svc(func(s *corev1.ServiceSpec) { s.Type = "ExternalName" }), []string{"spec.externalName: Required value"}},
		{"services", svc(func(s *corev1.ServiceSpec) { s.Type, s.ExternalName, s.ClusterIP = "ExternalName", "a.b", "10.43.0.5" }),
			[]string{"spec.clusterIPs: Forbidden: may not be set for ExternalName services"}},
		{"services", svc(func(s *corev1.ServiceSpec) { s.Type, s.ClusterIP = "NodePort", "None" }), []string{`spec.clusterIPs[0]: Invalid value: "None": may not be set to 'None' for NodePort services`}},
		{"services", svc(func(s *corev1.ServiceSpec) { s.ClusterIP = "1.2.3" }), []string{`spec.clusterIPs[0]: Invalid value: "1.2.3": must be a valid IP address`}},
		{"services", svc(func(s *corev1.ServiceSpec) { s.ClusterIP = "fd00::1" }), []string{"spec.clusterIPs[0]: Invalid value: [\"fd00::1\"]: IPv6 is not configured on this cluster"}},
		{"services", svc(func(s *corev1.ServiceSpec) { s.IPFamilies = []corev1.IPFamily{"IPv6"} }), []string{`spec.ipFamilies[0]: Invalid value: "IPv6": not configured on this cluster`}},
		{"services", svc(func(s *corev1.ServiceSpec) { s.SessionAffinity = "Cookie" }), []string{`spec.sessionAffinity: Unsupported value: "Cookie": supported values: "ClientIP", "None"`}},
		{"services", svc(func(s *corev1.ServiceSpec) {
			s.SessionAffinity = "ClientIP"
			s.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: ptr.To(int32(86401))}}
		}), []string{"spec.sessionAffinityConfig.clientIP.timeoutSeconds: Invalid value: 86401: must be greater than 0 and less than 86400"}},
		{"services", svc(func(s *corev1.ServiceSpec) { s.ExternalTrafficPolicy = "Local" }), []string{`spec.externalTrafficPolicy: Invalid value: "Local": may only be set for externally-accessible services`}},
		{"services", svc(func(s *corev1.ServiceSpec) { s.ExternalIPs = []string{"127.0.0.1"} }), []string{"spec.externalIPs[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)"}},
		{"services", svc(func(s *corev1.ServiceSpec) { s.LoadBalancerClass = ptr.To("a/b") }), []string{"spec.loadBalancerClass: Forbidden: may only be used when `type` is 'LoadBalancer'"}},
		{"services", svc(func(s *corev1.ServiceSpec) { s.TrafficDistribution = ptr.To("Far") }), []string{`spec.trafficDistribution: Unsupported value: "Far": supported values: "PreferClose", "PreferSameNode", "PreferSameZone"`}},

		{"configmaps", named(func(c *corev1.ConfigMap) { c.Data = map[string]string{"a b": ""} }), []string{`data[a b]: Invalid value: "a b": a valid config key must consist of`}},
		{"configmaps", named(func(c *corev1.ConfigMap) {
			c.Data, c.BinaryData = map[string]string{"a": ""}, map[string][]byte{"a": nil}
		}), []string{`data[a]: Invalid value: "a": duplicate of key present in binaryData`}},
		{"configmaps", named(func(c *corev1.ConfigMap) { c.Data = map[string]string{"a": string(make([]byte, 1<<20+1))} }), []string{"Too long: may not be more than 1048576 bytes"}},
		{"configmaps", named(func(c *corev1.ConfigMap) { c.Labels = map[string]string{"a": "b c"} }), []string{`metadata.labels: Invalid value: "b c"`}},

		{"secrets", typed(corev1.SecretTypeTLS), []string{"data[tls.crt]: Required value", "data[tls.key]: Required value"}},
		{"secrets", typed(corev1.SecretTypeBasicAuth), []string{"data[username]: Required value", "data[password]: Required value"}},
		{"secrets", typed(corev1.SecretTypeSSHAuth), []string{"data[ssh-privatekey]: Required value"}},
		{"secrets", typed(corev1.SecretTypeDockercfg), []string{"data[.dockercfg]: Required value"}},
		{"secrets", named(func(s *secret) {
			s.Type, s.Data = corev1.SecretTypeDockerConfigJson, map[string][]byte{".dockerconfigjson": []byte("hunter2")}
		}), []string{`data[.dockerconfigjson]: Invalid value: "<secret contents redacted>"`}},
		{"secrets", typed(corev1.SecretTypeServiceAccountToken), []string{"metadata.annotations[kubernetes.io/service-account.name]: Required value"}},

		{"namespaces", named(func(n *corev1.Namespace) { n.Name = "a.b" }), []string{`metadata.name: Invalid value: "a.b": must not contain dots`}},
		{"namespaces", named(func(n *corev1.Namespace) { n.Spec.Finalizers = []corev1.FinalizerName{"mine"} }), []string{`spec.finalizers[0]: Invalid value: "mine": name is neither a standard finalizer name nor is it fully qualified`}},

		{"nodes", taints(corev1.Taint{Key: "a", Effect: "Never"}), []string{`spec.taints[0].effect: Unsupported value: "Never": supported values: "NoExecute", "NoSchedule", "PreferNoSchedule"`}},
		{"nodes", taints(corev1.Taint{Key: "a", Effect: "NoSchedule"}, corev1.Taint{Key: "a", Value: "b", Effect: "NoSchedule"}),
			[]string{`spec.taints[1]: Duplicate value: {"key":"a","value":"b","effect":"NoSchedule"}: taints must be unique by key and effect pair`}},
		{"nodes", named(func(n *corev1.Node) { n.Spec.PodCIDR = "10.42.0.0" }), []string{"spec.podCIDRs[0]: Invalid value: \"10.42.0.0\": must be a valid CIDR value"}},

		{"endpoints", subsets(corev1.EndpointSubset{}), []string{"subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`"}},
		{"endpoints", subsets(corev1.EndpointSubset{Addresses: []corev1.EndpointAddress{{IP: "127.0.0.1"}}, Ports: []corev1.EndpointPort{{Port: 1}, {Port: 2}}}),
			[]string{"subsets[0].addresses[0].ip: Invalid value: \"127.0.0.1\": may not be in the loopback range", "subsets[0].ports[0].name: Required value"}},

		{"limitranges", limits(corev1.LimitRangeItem{Type: "Nonsense"}), []string{`spec.limits[0].type: Invalid value: "Nonsense": must be a standard limit type or fully qualified`}},
		{"limitranges", limits(corev1.LimitRangeItem{Type: "Container", Min: quantities("cpu", "2"), Max: quantities("cpu", "1")}),
			[]string{`spec.limits[0].min[cpu]: Invalid value: "2": min value 2 is greater than max value 1`}},
		{"limitranges", limits(corev1.LimitRangeItem{Type: "Pod", Default: quantities("cpu", "1")}), []string{"spec.limits[0].default: Forbidden: may not be specified when `type` is 'Pod'"}},
		{"limitranges", limits(corev1.LimitRangeItem{Type: "Container", MaxLimitRequestRatio: quantities("cpu", "500m")}), []string{`spec.limits[0].maxLimitRequestRatio[cpu]: Invalid value: "500m": ratio 500m is less than 1`}},
		{"limitranges", limits(corev1.LimitRangeItem{Type: "PersistentVolumeClaim"}), []string{"spec.limits[0].limits: Required value: either minimum or maximum storage value is required"}},

		{"resourcequotas", named(func(q *corev1.ResourceQuota) { q.Spec.Hard = quantities("bananas", "1") }), []string{`spec.hard[bananas]: Invalid value: "bananas": must be a standard resource for quota`}},
		{"resourcequotas", named(func(q *corev1.ResourceQuota) { q.Spec.Hard = quantities("pods", "1500m") }), []string{`spec.hard[pods]: Invalid value: "1500m": must be an integer`}},
		{"resourcequotas", named(func(q *corev1.ResourceQuota) { q.Spec.Hard = quantities("cpu", "-1") }), []string{`spec.hard[cpu]: Invalid value: "-1": must be greater than or equal to 0`}},
		{"resourcequotas", named(func(q *corev1.ResourceQuota) {
			q.Spec.Scopes = []corev1.ResourceQuotaScope{"BestEffort", "NotBestEffort"}
		}), []string{"spec.scopes: Invalid value: [\"BestEffort\",\"NotBestEffort\"]: conflicting scopes"}},

		{"persistentvolumeclaims", claim(func(c *corev1.PersistentVolumeClaim) { c.Spec.AccessModes = nil }), []string{"spec.accessModes: Required value: at least 1 access mode is required"}},
		{"persistentvolumeclaims", claim(func(c *corev1.PersistentVolumeClaim) { c.Spec.Resources.Requests = nil }), []string{"spec.resources[storage]: Required value"}},
		{"persistentvolumeclaims", claim(func(c *corev1.PersistentVolumeClaim) {
			c.Spec.Resources.Requests = quantities("storage", "0")
		}), []string{`spec.resources[storage]: Invalid value: "0": must be greater than zero`}},
		{"persistentvolumes", volume(func(v *corev1.PersistentVolume) { v.Spec.HostPath = nil }), []string{"spec: Required value: must specify a volume type"}},
		{"persistentvolumes", volume(func(v *corev1.PersistentVolume) { v.Spec.NFS = &corev1.NFSVolumeSource{Server: "s", Path: "/"} }), []string{"spec.nfs: Forbidden: may not specify more than 1 volume type"}},
		{"persistentvolumes", volume(func(v *corev1.PersistentVolume) { v.Spec.HostPath.Path = "/a/../b" }), []string{`spec.hostPath.path: Invalid value: "/a/../b": must not contain '..'`}},
		{"persistentvolumes", volume(func(v *corev1.PersistentVolume) { v.Spec.Capacity = nil }), []string{"spec.capacity: Required value"}},
		{"persistentvolumes", volume(func(v *corev1.PersistentVolume) {
			v.Spec.NodeAffinity = &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{}}
		}), []string{"spec.nodeAffinity.required.nodeSelectorTerms: Required value: must have at least one node selector term"}},
		{"persistentvolumes", volume(func(v *corev1.PersistentVolume) { v.Spec.VolumeAttributesClassName = ptr.To("fast") }),
			[]string{"spec.csi: Required value: has to be specified when using volumeAttributesClassName"}},

		{"events", named(func(e *corev1.Event) { e.InvolvedObject.Namespace = "elsewhere" }), []string{`involvedObject.namespace: Invalid value: "elsewhere": does not match event.namespace`}},
	} {
		ctx := f.ctx(c.resource)
		obj := c.obj.(metav1.Object)
		if namespaced(c.resource) {
			obj.SetNamespace("default")
		} else {
			ctx = registrytest.Context("", gvr(c.resource))
		}
		t.Run(c.resource+" "+c.want[0], func(t *testing.T) {
			_, err := f.Create(ctx, f.storage[c.resource], c.obj)
			refusal(t, err, c.want...)
		})
	}
}

func namespaced(resource string) bool {
	return resource != "namespaces" && resource != "nodes" && resource != "persistentvolumes"
}

func TestUpdateRefused(t *testing.T) {
	f := newFixture(t)
	for _, c := range []struct {
		resource string
		obj      runtime.Object
		change   func(runtime.Object)
		want     string
	}{
		{"configmaps", named(func(c *corev1.ConfigMap) { c.Immutable, c.Data = ptr.To(true), map[string]string{"a": "b"} }),
			func(o runtime.Object) { o.(*corev1.ConfigMap).Data["a"] = "c" }, "data: Forbidden: field is immutable when `immutable` is set"},
		{"secrets", named(func(s *secret) { s.Immutable = ptr.To(true) }),
			func(o runtime.Object) { o.(*secret).Immutable = nil }, "immutable: Forbidden: field is immutable when `immutable` is set"},
		{"secrets", named[secret](), func(o runtime.Object) { o.(*secret).Type = "mine" }, `type: Invalid value: "mine": field is immutable`},
		{"nodes", named(func(n *corev1.Node) { n.Spec.PodCIDR = "10.42.0.0/24" }),
			func(o runtime.Object) { o.(*corev1.Node).Spec.PodCIDR = "10.42.1.0/24" }, `spec.podCIDRs: Forbidden: node updates may not change podCIDR except from "" to valid`},
		{"nodes", named(func(n *corev1.Node) { n.Spec.ProviderID = "a" }),
			func(o runtime.Object) { o.(*corev1.Node).Spec.ProviderID = "b" }, "spec.providerID: Forbidden"},
		{"persistentvolumeclaims", claim(), func(o runtime.Object) {
			o.(*corev1.PersistentVolumeClaim).Spec.AccessModes = []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
		}, "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims"},
		{"persistentvolumeclaims", claim(betaClassed("slow")), func(o runtime.Object) { betaClassed("fast")(o.(*corev1.PersistentVolumeClaim)) },
			`metadata.annotations[volume.beta.kubernetes.io/storage-class]: Invalid value: "fast": field is immutable`},
		{"persistentvolumeclaims", claim(betaClassed("slow")), func(o runtime.Object) { o.(*corev1.PersistentVolumeClaim).Annotations = nil },
			`metadata.annotations[volume.beta.kubernetes.io/storage-class]: Invalid value: "": field is immutable`},
		{"persistentvolumeclaims", claim(betaClassed("slow")), func(o runtime.Object) {
			o.(*corev1.PersistentVolumeClaim).Spec.StorageClassName = ptr.To("fast")
		}, "spec: Forbidden: spec is immutable"},
		{"persistentvolumes", volume(), func(o runtime.Object) { o.(*corev1.PersistentVolume).Spec.HostPath.Path = "/other" },
			"spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation"},
		{"resourcequotas", named[corev1.ResourceQuota](), func(o runtime.Object) {
			o.(*corev1.ResourceQuota).Spec.Scopes = []corev1.ResourceQuotaScope{"Terminating"}
		}, `spec.scopes: Invalid value: ["Terminating"]: field is immutable`},
	} {
		t.Run(c.resource+" "+c.want, func(t *testing.T) {
			ctx := registrytest.Context("", gvr(c.resource))
			obj := c.obj.(metav1.Object)
			if namespaced(c.resource) {
				ctx = f.ctx(c.resource)
				obj.SetNamespace("default")
			}
			s := f.storage[c.resource]
			out := must[runtime.Object](t)(f.Create(ctx, s, c.obj)).DeepCopyObject()
			defer func() {
				if err := f.Delete(ctx, s, "x"); err != nil {
					t.Error(err)
				}
			}()
			c.change(out)
			_, err := f.Update(ctx, s, out)
			refusal(t, err, c.want)
		})
	}
}
