package registry

import (
	"context"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apiserver/pkg/registry/rest"
)

// Column makes a column that `kubectl get` always shows. The first column of a
// kind has format "name".
func Column(name, description string) metav1.TableColumnDefinition {
	c := metav1.TableColumnDefinition{Name: name, Type: "string", Description: description}
	if name == "Name" {
		c.Format = "name"
	}
	return c
}

// IntColumn is Column for whole numbers.
func IntColumn(name, description string) metav1.TableColumnDefinition {
	return metav1.TableColumnDefinition{Name: name, Type: "integer", Description: description}
}

// WideColumn is Column for what only `-o wide` shows.
func WideColumn(name, description string) metav1.TableColumnDefinition {
	return metav1.TableColumnDefinition{Name: name, Type: "string", Description: description, Priority: 1}
}

// Age gives the AGE cell: "<unknown>" for a zero time, else as kubectl writes
// durations.
func Age(t metav1.Time) string {
	if t.IsZero() {
		return "<unknown>"
	}
	return duration.HumanDuration(time.Since(t.Time))
}

type table struct {
	columns []metav1.TableColumnDefinition
	row     func(runtime.Object) []any
}

func (k Kind) table() rest.TableConvertor {
	if k.Columns == nil {
		return NewTable([]metav1.TableColumnDefinition{Column("Name", "Name of the object"), Column("Age", "Time since creation")},
			func(obj runtime.Object) []any {
				m, _ := meta.Accessor(obj)
				return []any{m.GetName(), Age(m.GetCreationTimestamp())}
			})
	}
	return NewTable(k.Columns, k.Row)
}

// NewTable makes a TableConvertor for single objects and lists of one kind.
func NewTable(columns []metav1.TableColumnDefinition, row func(runtime.Object) []any) rest.TableConvertor {
	return table{columns, row}
}

// ConvertToTable implements rest.TableConvertor.
func (t table) ConvertToTable(_ context.Context, obj, options runtime.Object) (*metav1.Table, error) {
	out := &metav1.Table{}
	add := func(o runtime.Object) error {
		out.Rows = append(out.Rows, metav1.TableRow{Cells: t.row(o), Object: runtime.RawExtension{Object: o}})
		return nil
	}
	if meta.IsListType(obj) {
		if err := meta.EachListItem(obj, add); err != nil {
			return nil, err
		}
		if l, err := meta.ListAccessor(obj); err == nil {
			out.ResourceVersion, out.Continue, out.RemainingItemCount = l.GetResourceVersion(), l.GetContinue(), l.GetRemainingItemCount()
		}
	} else {
		if err := add(obj); err != nil {
			return nil, err
		}
		if m, err := meta.CommonAccessor(obj); err == nil {
			out.ResourceVersion = m.GetResourceVersion()
		}
	}
	if o, ok := options.(*metav1.TableOptions); !ok || !o.NoHeaders {
		out.ColumnDefinitions = t.columns
	}
	return out, nil
}
