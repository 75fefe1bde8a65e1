package core

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/skiff-sh/skiff/cluster/registry/allocator"
	"github.com/skiff-sh/skiff/fsm"
)

func nodePort(s *corev1.Service)     { s.Spec.Type = corev1.ServiceTypeNodePort }
func loadBalancer(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeLoadBalancer }
func local(s *corev1.Service) {
	s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
}
func headless(s *corev1.Service) { s.Spec.ClusterIP = corev1.ClusterIPNone }
func clusterIP(ip string) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.ClusterIP = ip }
}
func port(n int32) func(*corev1.Service) {
	return func(s *corev1.Service) { s.Spec.Ports[0].NodePort = n }
}

// reserved lists the names that are held.
func (f *fixture) reserved() []string {
	var out []string
	allocator.New(f.Log, f.DB).Each("", func(r allocator.Reservation) bool {
		out = append(out, r.Name)
		return true
	})
	return out
}

// services lists all there are.
func (f *fixture) services(ctx context.Context) ([]corev1.Service, error) {
	list, err := f.storage["services"].(rest.Lister).List(ctx, nil)
	if err != nil {
		return nil, err
	}
	return list.(*corev1.ServiceList).Items, nil
}

// used lists what the stored services need, which must be what is held.
func (f *fixture) used() []string {
	f.t.Helper()
	services, err := f.services(f.ctx("services"))
	if err != nil {
		f.t.Fatal(err)
	}
	var out []string
	for _, s := range services {
		for name := range holdings(&s) {
			if slices.Contains(out, name) {
				f.t.Fatalf("%s is used by two services", name)
			}
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

func (f *fixture) checkBalance() {
	f.t.Helper()
	held := f.reserved()
	slices.Sort(held)
	if diff := cmp.Diff(f.used(), held); diff != "" {
		f.t.Errorf("what services use (-) and what is held (+) differ:\n%s", diff)
	}
}

func TestServiceAllocation(t *testing.T) {
	f := newFixture(t)
	ctx, services := f.ctx("services"), f.storage["services"]
	create := func(s *corev1.Service) (*corev1.Service, error) {
		obj, err := f.Create(ctx, services, s)
		if err != nil {
			return nil, err
		}
		return obj.(*corev1.Service), nil
	}

	s, err := create(service("auto"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(s.Spec.ClusterIP, "10.43.") || !slices.Equal(s.Spec.ClusterIPs, []string{s.Spec.ClusterIP}) {
		t.Errorf("cluster IPs %q %q", s.Spec.ClusterIP, s.Spec.ClusterIPs)
	}
	if strings.HasPrefix(s.Spec.ClusterIP, "10.43.0.") {
		t.Errorf("%s comes from the part of the range that is kept for those who ask", s.Spec.ClusterIP)
	}
	if s.Generation != 0 || *s.Spec.IPFamilyPolicy != corev1.IPFamilyPolicySingleStack || !slices.Equal(s.Spec.IPFamilies, []corev1.IPFamily{corev1.IPv4Protocol}) {
		t.Errorf("generation %d, families %v %v", s.Generation, *s.Spec.IPFamilyPolicy, s.Spec.IPFamilies)
	}
	if s, err = create(service("fixed", clusterIP("10.43.0.10"), nodePort, port(30080))); err != nil {
		t.Fatal(err)
	}
	if s.Spec.ClusterIP != "10.43.0.10" || s.Spec.Ports[0].NodePort != 30080 {
		t.Errorf("got %s and %d", s.Spec.ClusterIP, s.Spec.Ports[0].NodePort)
	}
	if s, err = create(service("lb", loadBalancer, local)); err != nil {
		t.Fatal(err)
	}
	if n := s.Spec.HealthCheckNodePort; n < 30000 || n > 32767 || n == s.Spec.Ports[0].NodePort {
		t.Errorf("health check port %d", n)
	}
	s, err = create(service("dns", nodePort, func(s *corev1.Service) {
		s.Spec.Ports = []corev1.ServicePort{{Name: "u", Port: 53, Protocol: corev1.ProtocolUDP}, {Name: "t", Port: 53}}
	}))
	if err != nil {
		t.Fatal(err)
	}
	if p := s.Spec.Ports; p[0].NodePort != p[1].NodePort || p[0].NodePort == 0 {
		t.Errorf("node ports of one port in two protocols: %d %d", p[0].NodePort, p[1].NodePort)
	}
	for _, c := range []*corev1.Service{service("headless", headless), service("external", func(s *corev1.Service) {
		s.Spec.Type, s.Spec.ExternalName, s.Spec.Ports = corev1.ServiceTypeExternalName, "example.com.", nil
	})} {
		before := len(f.reserved())
		if _, err := create(c); err != nil {
			t.Fatal(err)
		}
		if after := len(f.reserved()); after != before {
			t.Errorf("%s reserved %d names", c.Name, after-before)
		}
	}
	f.checkBalance()

	for _, c := range []struct {
		name string
		s    *corev1.Service
		want string
	}{
		{"address taken", service("x", clusterIP("10.43.0.10")), `spec.clusterIPs: Invalid value: ["10.43.0.10"]: failed to allocate IP 10.43.0.10: provided IP is already allocated`},
		{"address elsewhere", service("x", clusterIP("10.96.0.10")), "failed to allocate IP 10.96.0.10: the provided network does not match the current range"},
		{"network's address", service("x", clusterIP("10.43.0.0")), "does not match the current range"},
		{"broadcast address", service("x", clusterIP("10.43.255.255")), "does not match the current range"},
		{"port taken", service("x", nodePort, port(30080)), "spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated"},
		{"port too high", service("x", nodePort, port(32768)), "spec.ports[0].nodePort: Invalid value: 32768: provided port is not in the valid range. The range of valid ports is 30000-32767"},
		{"port too low", service("x", nodePort, port(8080)), "The range of valid ports is 30000-32767"},
		{"invalid otherwise", service("x", nodePort, func(s *corev1.Service) { s.Spec.Ports[0].Protocol = "ICMP" }), "spec.ports[0].protocol: Unsupported value"},
		{"name taken", service("auto"), `services "auto" already exists`},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := f.reserved()
			_, err := create(c.s)
			refusal(t, err, c.want)
			if after := f.reserved(); !slices.Equal(before, after) {
				t.Errorf("refused request left reservations: before %v, after %v", before, after)
			}
		})
	}
	t.Run("dry run", func(t *testing.T) {
		before := f.reserved()
		s := service("dry", nodePort)
		f.Scheme.Default(s)
		out, err := services.(rest.Creater).Create(ctx, s, rest.ValidateAllObjectFunc, &metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err != nil {
			t.Fatal(err)
		}
		if s := out.(*corev1.Service); s.Spec.ClusterIP == "" || s.Spec.Ports[0].NodePort == 0 {
			t.Errorf("dry run shows %+v", s.Spec)
		}
		taken := service("dry", clusterIP("10.43.0.10"))
		f.Scheme.Default(taken)
		_, err = services.(rest.Creater).Create(ctx, taken, rest.ValidateAllObjectFunc, &metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		refusal(t, err, "already allocated")
		if after := f.reserved(); !slices.Equal(before, after) {
			t.Errorf("dry run reserved: before %v, after %v", before, after)
		}
	})
	if err := f.Delete(ctx, services, "fixed"); err != nil {
		t.Fatal(err)
	}
	f.checkBalance()
	if _, err := create(service("again", clusterIP("10.43.0.10"), nodePort, port(30080))); err != nil {
		t.Errorf("what a deleted service gave up: %v", err)
	}
}

func TestServiceUpdate(t *testing.T) {
	external := func(s *corev1.Service) {
		s.Spec.Type, s.Spec.ExternalName = corev1.ServiceTypeExternalName, "example.com"
	}
	plain := func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeClusterIP }
	for _, c := range []struct {
		name   string
		from   []func(*corev1.Service)
		change func(*corev1.Service)
		check  func(was, now *corev1.Service) bool
		want   string // of the error
	}{
		{"nothing given keeps all", []func(*corev1.Service){nodePort}, func(s *corev1.Service) {
			s.Spec.ClusterIP, s.Spec.ClusterIPs, s.Spec.Ports[0].NodePort = "", nil, 0
		}, func(was, now *corev1.Service) bool {
			return now.Spec.ClusterIP == was.Spec.ClusterIP && now.Spec.Ports[0].NodePort == was.Spec.Ports[0].NodePort
		}, ""},
		{"NodePort to ClusterIP", []func(*corev1.Service){nodePort}, plain, func(was, now *corev1.Service) bool {
			return now.Spec.ClusterIP == was.Spec.ClusterIP && now.Spec.Ports[0].NodePort == 0 && now.Spec.ExternalTrafficPolicy == ""
		}, ""},
		{"ClusterIP to NodePort", nil, nodePort, func(was, now *corev1.Service) bool {
			return now.Spec.ClusterIP == was.Spec.ClusterIP && now.Spec.Ports[0].NodePort >= 30000
		}, ""},
		{"to ExternalName", []func(*corev1.Service){nodePort}, external, func(was, now *corev1.Service) bool {
			return now.Spec.ClusterIP == "" && now.Spec.ClusterIPs == nil && now.Spec.IPFamilies == nil && now.Spec.Ports[0].NodePort == 0
		}, ""},
		{"from ExternalName", []func(*corev1.Service){external}, plain, func(was, now *corev1.Service) bool {
			return now.Spec.ClusterIP != "" && len(now.Spec.IPFamilies) == 1
		}, ""},
		{"LoadBalancer to ClusterIP", []func(*corev1.Service){loadBalancer, local}, plain, func(was, now *corev1.Service) bool {
			return now.Spec.HealthCheckNodePort == 0 && now.Spec.AllocateLoadBalancerNodePorts == nil
		}, ""},
		{"Local to Cluster", []func(*corev1.Service){loadBalancer, local}, func(s *corev1.Service) {
			s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
		}, func(was, now *corev1.Service) bool { return now.Spec.HealthCheckNodePort == 0 }, ""},
		{"another node port", []func(*corev1.Service){nodePort}, port(30001), func(was, now *corev1.Service) bool {
			return now.Spec.Ports[0].NodePort == 30001
		}, ""},
		{"a further port", []func(*corev1.Service){nodePort}, func(s *corev1.Service) {
			s.Spec.Ports[0].Name = "a"
			s.Spec.Ports = append(s.Spec.Ports, corev1.ServicePort{Name: "b", Port: 81})
		}, func(was, now *corev1.Service) bool {
			return now.Spec.Ports[0].NodePort == was.Spec.Ports[0].NodePort && now.Spec.Ports[1].NodePort >= 30000
		}, ""},
		{"address changed", nil, clusterIP("10.43.0.9"), nil, `spec.clusterIPs[0]: Invalid value: ["10.43.0.9"]: may not change once set`},
		{"port taken", []func(*corev1.Service){nodePort}, port(30000), nil, "spec.ports[0].nodePort: Invalid value: 30000: provided port is already allocated"},
		{"dual stack", nil, func(s *corev1.Service) {
			p := corev1.IPFamilyPolicyRequireDualStack
			s.Spec.IPFamilyPolicy = &p
		}, nil, `spec.ipFamilyPolicy: Invalid value: "RequireDualStack": this cluster is not configured for dual-stack services`},
		{"health check port", []func(*corev1.Service){loadBalancer, local}, func(s *corev1.Service) { s.Spec.HealthCheckNodePort = 30005 },
			nil, "spec.healthCheckNodePort: Forbidden: field is immutable"},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(t)
			ctx, services := f.ctx("services"), f.storage["services"]
			must[*corev1.Service](t)(f.Create(ctx, services, service("other", nodePort, port(30000))))
			was := must[*corev1.Service](t)(f.Create(ctx, services, service("s", c.from...)))
			now := was.DeepCopy()
			c.change(now)
			out, err := f.Update(ctx, services, now)
			switch {
			case c.want != "":
				refusal(t, err, c.want)
			case err != nil:
				t.Error(err)
			case !c.check(was, out.(*corev1.Service)):
				t.Errorf("was %+v\nnow %+v", was.Spec, out.(*corev1.Service).Spec)
			}
			f.checkBalance()
		})
	}
}

// Several servers with the same log never give one port or address twice, even
// when their range is nearly full.
func TestServiceAllocationConcurrent(t *testing.T) {
	f := newFixture(t)
	const servers, each = 4, 25
	var wg sync.WaitGroup
	for i := range servers {
		m := f.server(allocator.New(f.Log, f.DB))
		r := m["services"].(*ServiceStore)
		r.ports.Last = r.ports.First + servers*each - 1 // every port is needed
		wg.Go(func() {
			for j := range each {
				s := service(fmt.Sprintf("s-%d-%d", i, j), nodePort)
				f.Scheme.Default(s)
				if _, err := r.Create(f.ctx("services"), s, rest.ValidateAllObjectFunc, &metav1.CreateOptions{}); err != nil {
					t.Errorf("server %d: %v", i, err)
				}
			}
		})
	}
	wg.Wait()
	f.checkBalance()
	if n := len(f.used()); n != 2*servers*each {
		t.Errorf("%d names in use, want %d", n, 2*servers*each)
	}
	r := f.storage["services"].(*ServiceStore)
	r.ports.Last = r.ports.First + servers*each - 1
	_, err := f.Create(f.ctx("services"), r, service("late", nodePort))
	refusal(t, err, "failed to allocate a nodePort: range is full")
	f.checkBalance()
}

// The same address asked for by many at once goes to one of them.
func TestServiceAllocationRace(t *testing.T) {
	f := newFixture(t)
	var mu sync.Mutex
	var won, lost int
	var wg sync.WaitGroup
	for i := range 8 {
		r := f.server(allocator.New(f.Log, f.DB))["services"]
		wg.Go(func() {
			_, err := f.Create(f.ctx("services"), r, service(fmt.Sprintf("s%d", i), clusterIP("10.43.0.50")))
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				won++
			case strings.Contains(err.Error(), "provided IP is already allocated"):
				lost++
			default:
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won != 1 || lost != 7 {
		t.Errorf("%d won, %d lost", won, lost)
	}
	f.checkBalance()
}

// old makes every reservation look older than any request.
type old struct{ *allocator.Replicated }

func (o old) Get(name string) (allocator.Reservation, bool) {
	r, ok := o.Replicated.Get(name)
	r.Since = r.Since.Add(-2 * allocator.InFlight)
	return r, ok
}

func (o old) Each(prefix string, fn func(allocator.Reservation) bool) {
	o.Replicated.Each(prefix, func(r allocator.Reservation) bool {
		r.Since = r.Since.Add(-2 * allocator.InFlight)
		return fn(r)
	})
}

func (f *fixture) repair(r allocator.Reservations) error {
	return RepairServices(f.ctx("services"), f.services, r, slog.New(slog.DiscardHandler))
}

func isService(c fsm.Command) bool {
	return strings.HasPrefix(c.Ops[0].Key, "/registry/services")
}

// A server that dies between reservation and write leaves a reservation that
// nobody uses; one that dies after the delete leaves one too.
func TestServiceRepair(t *testing.T) {
	f := newFixture(t)
	ctx, services := f.ctx("services"), f.storage["services"]
	must[*corev1.Service](t)(f.Create(ctx, services, service("kept", clusterIP("10.43.0.20"), nodePort, port(30020))))
	must[*corev1.Service](t)(f.Create(ctx, services, service("gone", clusterIP("10.43.0.21"), nodePort, port(30021))))

	dead := errors.New("the server is dead")
	crashed := false
	f.Log.SetFault(func(c fsm.Command) (error, error) {
		if crashed {
			return dead, nil
		}
		if isService(c) {
			crashed = true
			if c.Ops[0].Type == fsm.Put {
				return dead, nil // before a create
			}
			return nil, dead // after a delete
		}
		return nil, nil
	})
	if _, err := f.Create(ctx, services, service("new", clusterIP("10.43.0.22"), nodePort, port(30022))); err == nil {
		t.Fatal("created by a dead server")
	}
	crashed = false
	_ = f.Delete(ctx, services, "gone")
	f.Log.SetFault(nil)

	if held := f.reserved(); !slices.Contains(held, "clusterip/10.43.0.22") || !slices.Contains(held, "nodeport/30021") {
		t.Fatalf("the crash left nothing behind: %v", held)
	}
	// Fresh ones may belong to a request of another server.
	_, err := f.Create(ctx, services, service("x", clusterIP("10.43.0.22")))
	refusal(t, err, "already allocated")
	if err := f.repair(allocator.New(f.Log, f.DB)); err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(f.reserved(), "clusterip/10.43.0.22") {
		t.Error("repair gave up a fresh reservation")
	}

	later := f.server(old{allocator.New(f.Log, f.DB)})["services"].(*ServiceStore)
	if _, err := f.Create(ctx, later, service("x", clusterIP("10.43.0.22"))); err != nil {
		t.Errorf("abandoned address is not given to who asks for it: %v", err)
	}
	_, err = f.Create(ctx, later, service("y", clusterIP("10.43.0.20")))
	refusal(t, err, "already allocated")
	if err := f.repair(old{allocator.New(f.Log, f.DB)}); err != nil {
		t.Fatal(err)
	}
	f.checkBalance()

	// What a service uses and nobody holds is reserved again.
	r := allocator.New(f.Log, f.DB)
	held, _ := r.Get("nodeport/30020")
	if err := r.Release(ctx, held.Name, held.Owner); err != nil {
		t.Fatal(err)
	}
	if err := f.repair(old{allocator.New(f.Log, f.DB)}); err != nil {
		t.Fatal(err)
	}
	f.checkBalance()
}

// When it is open whether a write happened, its reservations are kept.
func TestServiceLostAnswer(t *testing.T) {
	f := newFixture(t)
	ctx, services := f.ctx("services"), f.storage["services"]
	f.Log.SetFault(func(c fsm.Command) (error, error) {
		if isService(c) {
			return nil, errors.New("connection lost")
		}
		return nil, nil
	})
	if _, err := f.Create(ctx, services, service("s", nodePort)); err == nil {
		t.Fatal("no error")
	}
	f.Log.SetFault(nil)
	f.checkBalance()
	if len(f.used()) != 2 {
		t.Errorf("the service was written, and uses %v", f.used())
	}
}

// A refused update keeps what the service had and gives up what it asked for.
func TestServiceConflict(t *testing.T) {
	f := newFixture(t)
	ctx, services := f.ctx("services"), f.storage["services"]
	was := must[*corev1.Service](t)(f.Create(ctx, services, service("s", nodePort)))
	newer := was.DeepCopy()
	newer.Labels = map[string]string{"a": "b"}
	must[*corev1.Service](t)(f.Update(ctx, services, newer))
	was.Spec.Ports[0].NodePort = 30007
	_, err := f.Update(ctx, services, was)
	if !apierrors.IsConflict(err) {
		t.Fatalf("error %v", err)
	}
	f.checkBalance()

	// Refused by admission, after the port was reserved.
	veto := func() (err error) {
		now := newer.DeepCopy()
		now.ResourceVersion = ""
		now.Spec.Ports[0].NodePort = 30008
		_, _, err = services.(rest.Updater).Update(ctx, "s", rest.DefaultUpdatedObjectInfo(now), rest.ValidateAllObjectFunc,
			vetoUpdate, false, &metav1.UpdateOptions{})
		return err
	}
	refusal(t, veto(), "not on my watch")
	f.checkBalance()
	s := must[*corev1.Service](t)(services.(rest.Getter).Get(ctx, "s", &metav1.GetOptions{}))
	if s.Spec.Ports[0].NodePort == 30008 || s.Spec.Ports[0].TargetPort != intstr.FromInt32(80) {
		t.Errorf("refused update was stored: %+v", s.Spec.Ports)
	}
	if time.Since(s.CreationTimestamp.Time) > time.Minute {
		t.Errorf("created at %v", s.CreationTimestamp)
	}
}
