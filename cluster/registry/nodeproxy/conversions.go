package nodeproxy

import (
	"fmt"
	"net/url"
	"reflect"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/conversion"
	"k8s.io/apimachinery/pkg/runtime"
)

// AddConversions teaches s to read the options of connections from the query of
// a request.
func AddConversions(s *runtime.Scheme) error {
	for _, into := range []runtime.Object{
		&corev1.PodLogOptions{}, &corev1.PodExecOptions{}, &corev1.PodPortForwardOptions{},
		&corev1.PodProxyOptions{}, &corev1.ServiceProxyOptions{}, &corev1.NodeProxyOptions{},
	} {
		if err := s.AddConversionFunc((*url.Values)(nil), into, func(a, b any, _ conversion.Scope) error {
			return fromQuery(*a.(*url.Values), b)
		}); err != nil {
			return fmt.Errorf("conversion of query to %T: %w", into, err)
		}
	}
	err := s.AddConversionFunc((*url.Values)(nil), &corev1.PodAttachOptions{}, func(a, b any, _ conversion.Scope) error {
		// What is not mentioned is wanted, unlike with exec.
		o := b.(*corev1.PodAttachOptions)
		o.Stdout, o.Stderr = true, true
		return fromQuery(*a.(*url.Values), b)
	})
	if err != nil {
		return fmt.Errorf("conversion of query to attach options: %w", err)
	}
	return nil
}

// fromQuery fills the fields of into, a pointer to a struct, from the values
// under their JSON names. Numbers that are none are errors; a flag counts as
// set unless it says no.
func fromQuery(values url.Values, into any) error {
	v := reflect.ValueOf(into).Elem()
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		list, ok := values[name]
		if name == "" || !ok || len(list) == 0 {
			continue
		}
		if err := setField(v.Field(i), list); err != nil {
			return fmt.Errorf("query parameter %q: %w", name, err)
		}
	}
	return nil
}

func setField(f reflect.Value, list []string) error {
	switch p := f.Addr().Interface().(type) {
	case *string:
		*p = list[0]
	case **string:
		*p = &list[0]
	case *[]string:
		*p = list
	case *bool:
		*p = list[0] != "0" && strings.ToLower(list[0]) != "false"
	case **int64:
		n, err := strconv.ParseInt(list[0], 10, 64)
		if err != nil {
			return err
		}
		*p = &n
	case *[]int32:
		for _, s := range list {
			n, err := strconv.ParseInt(s, 10, 32)
			if err != nil {
				return err
			}
			*p = append(*p, int32(n))
		}
	case **metav1.Time:
		var t metav1.Time
		if err := t.UnmarshalQueryParameter(list[0]); err != nil {
			return err
		}
		*p = &t
	default:
		return fmt.Errorf("fields of type %s are not read from queries", f.Type())
	}
	return nil
}
