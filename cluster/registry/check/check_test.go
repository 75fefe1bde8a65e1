package check

import (
	"testing"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func TestMessages(t *testing.T) {
	p := field.NewPath("spec", "x")
	for _, c := range []struct {
		errs field.ErrorList
		want string // of the first; empty: none
	}{
		{OneOf(p, "a", "b", "a"), ""},
		{OneOf(p, "", "a"), "spec.x: Required value"},
		{OneOf(p, "c", "b", "a"), `spec.x: Unsupported value: "c": supported values: "a", "b"`},
		{OptionalOneOf(p, "", "a"), ""},
		{Label(p, "A"), `spec.x: Invalid value: "A": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')`},
		{Subdomain(p, "a.b"), ""},
		{QualifiedName(p, "a/b"), ""},
		{Port(p, 0), "spec.x: Invalid value: 0: must be between 1 and 65535, inclusive"},
		{PortOrName(p, intstr.FromInt32(80)), ""},
		{PortOrName(p, intstr.FromString("http")), ""},
		{PortOrName(p, intstr.FromString("80")), `spec.x: Invalid value: "80": must contain at least one letter (a-z)`},
		{NonNegative(p, -1), "spec.x: Invalid value: -1: must be greater than or equal to 0"},
		{NonNegativeQuantity(p, resource.MustParse("-1")), `spec.x: Invalid value: "-1": must be greater than or equal to 0`},
		{PositiveQuantity(p, resource.MustParse("0")), `spec.x: Invalid value: "0": must be greater than zero`},
		{Unchanged(p, "a", "a"), ""},
		{Unchanged(p, "a", "b"), `spec.x: Invalid value: "a": field is immutable`},
		{OrdinaryIP(p, "10.0.0.1"), ""},
		{OrdinaryIP(p, "0.0.0.0"), `spec.x: Invalid value: "0.0.0.0": may not be unspecified (0.0.0.0)`},
		{OrdinaryIP(p, "224.0.0.1"), `spec.x: Invalid value: "224.0.0.1": may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)`},
	} {
		got := ""
		if len(c.errs) > 0 {
			got = c.errs[0].Error()
		}
		if got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
}
