package core

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/skiff-sh/skiff/cluster/registry/allocator"
	"github.com/skiff-sh/skiff/cluster/registry/registrytest"
)

// fixture is the storage of the core group on a store in memory.
type fixture struct {
	*registrytest.Env
	t       testing.TB
	storage map[string]rest.Storage
}

func newFixture(t testing.TB) *fixture {
	t.Helper()
	env := registrytest.New(t, AddDefaults)
	f := &fixture{Env: env, t: t}
	f.storage = f.server(allocator.New(env.Log, env.DB))
	return f
}

// server is one more server on the same store.
func (f *fixture) server(r allocator.Reservations) map[string]rest.Storage {
	f.t.Helper()
	m, err := NewStorage(f.Options, Config{ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16"), Reservations: r})
	if err != nil {
		f.t.Fatal(err)
	}
	return m
}

func (f *fixture) ctx(resource string) context.Context {
	return registrytest.Context("default", gvr(resource))
}

// must and wants take what Create and Update give.
func must[T runtime.Object](t testing.TB) func(runtime.Object, error) T {
	return func(obj runtime.Object, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return obj.(T)
	}
}

// refusal checks that err says all of texts.
func refusal(t testing.TB, err error, texts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("accepted, want an error with %q", texts)
	}
	for _, s := range texts {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("error does not say %q:\n%v", s, err)
		}
	}
}

func service(name string, change ...func(*corev1.Service)) *corev1.Service {
	s := &corev1.Service{}
	s.Name, s.Namespace = name, "default"
	s.Spec.Selector = map[string]string{"app": name}
	s.Spec.Ports = []corev1.ServicePort{{Port: 80}}
	for _, c := range change {
		c(s)
	}
	return s
}

func vetoUpdate(context.Context, runtime.Object, runtime.Object) error {
	return apierrors.NewForbidden(gvr("services").GroupResource(), "s", errors.New("not on my watch"))
}
