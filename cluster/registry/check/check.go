// Package check has the validation rules that many kinds share. The messages
// are those of the Kubernetes API.
package check

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/api/resource"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// NotPositive and NotNegative are what the API says of numbers out of range.
const (
	NotPositive = "must be greater than zero"
	NotNegative = apivalidation.IsNegativeErrorMsg
	Immutable   = apivalidation.FieldImmutableErrorMsg
)

// Messages makes one Invalid error of each message.
func Messages(p *field.Path, value any, msgs []string) field.ErrorList {
	var errs field.ErrorList
	for _, m := range msgs {
		errs = append(errs, field.Invalid(p, value, m))
	}
	return errs
}

// OneOf requires a value that is one of allowed.
func OneOf[T ~string](p *field.Path, v T, allowed ...T) field.ErrorList {
	if v == "" {
		return field.ErrorList{field.Required(p, "")}
	}
	return OptionalOneOf(p, v, allowed...)
}

// OptionalOneOf accepts an empty value or one of allowed.
func OptionalOneOf[T ~string](p *field.Path, v T, allowed ...T) field.ErrorList {
	if v == "" || slices.Contains(allowed, v) {
		return nil
	}
	allowed = slices.Clone(allowed)
	slices.SortFunc(allowed, func(a, b T) int { return cmp.Compare(a, b) })
	return field.ErrorList{field.NotSupported(p, v, allowed)}
}

// Label requires a DNS-1123 label.
func Label(p *field.Path, v string) field.ErrorList {
	return Messages(p, v, validation.IsDNS1123Label(v))
}

// Subdomain requires a DNS-1123 subdomain.
func Subdomain(p *field.Path, v string) field.ErrorList {
	return Messages(p, v, validation.IsDNS1123Subdomain(v))
}

// QualifiedName requires a name with an optional DNS prefix, such as a label
// key.
func QualifiedName(p *field.Path, v string) field.ErrorList {
	return Messages(p, v, validation.IsQualifiedName(v))
}

// Port requires a port number.
func Port(p *field.Path, n int32) field.ErrorList {
	return Messages(p, n, validation.IsValidPortNum(int(n)))
}

// PortOrName requires a port number or the name of a container port.
func PortOrName(p *field.Path, v intstr.IntOrString) field.ErrorList {
	if v.Type == intstr.Int {
		return Messages(p, v.IntValue(), validation.IsValidPortNum(v.IntValue()))
	}
	return Messages(p, v.StrVal, validation.IsValidPortName(v.StrVal))
}

// NonNegative refuses numbers below zero.
func NonNegative(p *field.Path, n int64) field.ErrorList {
	return apivalidation.ValidateNonnegativeField(n, p)
}

// NonNegativeQuantity refuses quantities below zero.
func NonNegativeQuantity(p *field.Path, q resource.Quantity) field.ErrorList {
	if q.Sign() < 0 {
		return field.ErrorList{field.Invalid(p, q.String(), NotNegative)}
	}
	return nil
}

// PositiveQuantity refuses quantities of zero and less.
func PositiveQuantity(p *field.Path, q resource.Quantity) field.ErrorList {
	if q.Sign() <= 0 {
		return field.ErrorList{field.Invalid(p, q.String(), NotPositive)}
	}
	return nil
}

// Unchanged refuses a new value that differs from the old one.
func Unchanged(p *field.Path, value, old any) field.ErrorList {
	return apivalidation.ValidateImmutableField(value, old, p)
}

// OrdinaryIP refuses addresses that no remote host can have.
func OrdinaryIP(p *field.Path, ip string) field.ErrorList {
	a, err := netip.ParseAddr(ip)
	if err != nil {
		return field.ErrorList{field.Invalid(p, ip, "must be a valid IP address")}
	}
	var errs field.ErrorList
	for _, c := range []struct {
		is  bool
		msg string
	}{
		{a.IsUnspecified(), fmt.Sprintf("may not be unspecified (%v)", ip)},
		{a.IsLoopback(), "may not be in the loopback range (127.0.0.0/8, ::1/128)"},
		{a.IsLinkLocalUnicast(), "may not be in the link-local range (169.254.0.0/16, fe80::/10)"},
		{a.IsLinkLocalMulticast(), "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)"},
	} {
		if c.is {
			errs = append(errs, field.Invalid(p, ip, c.msg))
		}
	}
	return errs
}
