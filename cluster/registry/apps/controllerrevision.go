package apps

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/rest"

	"github.com/skiff-sh/skiff/cluster/registry"
)

func controllerRevisionStorage(o registry.Options, m map[string]rest.Storage) error {
	_, err := controllerRevisions().AddTo(m, o)
	return err
}

func controllerRevisions() registry.Kind {
	return registry.Kind{
		Resource: gvr("controllerrevisions"),
		Singular: "controllerrevision",
		Object:   &appsv1.ControllerRevision{},
		List:     &appsv1.ControllerRevisionList{},
		Validate: func(_ context.Context, obj runtime.Object) field.ErrorList {
			return validateControllerRevision(obj.(*appsv1.ControllerRevision))
		},
		ValidateUpdate: func(_ context.Context, obj, old runtime.Object) field.ErrorList {
			r, before := obj.(*appsv1.ControllerRevision), old.(*appsv1.ControllerRevision)
			errs := validateControllerRevision(r)
			if !bytes.Equal(r.Data.Raw, before.Data.Raw) {
				errs = append(errs, immutable(r.Data, before.Data, field.NewPath("data"))...)
			}
			return errs
		},
		Columns: []metav1.TableColumnDefinition{
			registry.Column("Name", metav1.ObjectMeta{}.SwaggerDoc()["name"]),
			registry.Column("Controller", "Controller of the object"),
			registry.Column("Revision", appsv1.ControllerRevision{}.SwaggerDoc()["revision"]),
			registry.Column("Age", metav1.ObjectMeta{}.SwaggerDoc()["creationTimestamp"]),
		},
		Row: func(obj runtime.Object) []any {
			r := obj.(*appsv1.ControllerRevision)
			return []any{r.Name, controllerName(r), r.Revision, registry.Age(r.CreationTimestamp)}
		},
	}
}

// controllerName gives kind.group/name of what controls obj.
func controllerName(obj metav1.Object) string {
	ref := metav1.GetControllerOf(obj)
	if ref == nil {
		return "<none>"
	}
	gv, err := schema.ParseGroupVersion(ref.APIVersion)
	if err != nil {
		return "<none>"
	}
	return strings.ToLower(gv.WithKind(ref.Kind).GroupKind().String()) + "/" + ref.Name
}

func validateControllerRevision(r *appsv1.ControllerRevision) field.ErrorList {
	var errs field.ErrorList
	if len(r.Data.Raw) == 0 {
		errs = append(errs, field.Required(field.NewPath("data"), "data is mandatory"))
	} else if data := map[string]any{}; json.Unmarshal(r.Data.Raw, &data) != nil {
		errs = append(errs, field.Invalid(field.NewPath("data"), string(r.Data.Raw), "must be a valid JSON object"))
	}
	return append(errs, nonNegative(r.Revision, field.NewPath("revision"))...)
}
