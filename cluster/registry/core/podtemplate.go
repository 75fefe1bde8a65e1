package core

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/skiff-sh/skiff/cluster/registry"
	"github.com/skiff-sh/skiff/cluster/registry/podspec"
)

func setPodTemplateDefaults(t *corev1.PodTemplate) { podspec.SetTemplateDefaults(&t.Template) }

var podTemplateKind = registry.Kind{
	Resource: gvr("podtemplates"),
	Singular: "podtemplate",
	Object:   &corev1.PodTemplate{},
	List:     &corev1.PodTemplateList{},
	PrepareForCreate: func(_ context.Context, obj runtime.Object) {
		t := obj.(*corev1.PodTemplate)
		t.Generation = 1
		podspec.MirrorServiceAccount(&t.Template.Spec)
	},
	PrepareForUpdate: func(_ context.Context, obj, old runtime.Object) {
		t, before := obj.(*corev1.PodTemplate), old.(*corev1.PodTemplate)
		podspec.MirrorServiceAccount(&t.Template.Spec)
		if !registry.SemanticEqual(t.Template, before.Template) {
			t.Generation = before.Generation + 1
		}
	},
	Validate: func(_ context.Context, obj runtime.Object) field.ErrorList {
		return podspec.ValidateTemplate(&obj.(*corev1.PodTemplate).Template, nil, field.NewPath("template"), podspec.Options{})
	},
	ValidateUpdate: func(_ context.Context, obj, old runtime.Object) field.ErrorList {
		return podspec.ValidateTemplate(&obj.(*corev1.PodTemplate).Template, &old.(*corev1.PodTemplate).Template, field.NewPath("template"), podspec.Options{})
	},
	Warnings: func(_ context.Context, obj runtime.Object) []string {
		return podspec.TemplateWarnings(&obj.(*corev1.PodTemplate).Template, nil, field.NewPath("template"))
	},
	WarningsOnUpdate: func(_ context.Context, obj, old runtime.Object) []string {
		return podspec.TemplateWarnings(&obj.(*corev1.PodTemplate).Template, &old.(*corev1.PodTemplate).Template, field.NewPath("template"))
	},
	Columns: []metav1.TableColumnDefinition{
		registry.Column("Name", metav1.ObjectMeta{}.SwaggerDoc()["name"]),
		registry.Column("Containers", "Names of each container in the template."),
		registry.Column("Images", "Images referenced by each container in the template."),
		registry.Column("Pod Labels", "The labels for the pod template."),
	},
	Row: func(obj runtime.Object) []any {
		t := obj.(*corev1.PodTemplate)
		names, images := podspec.ContainerCells(t.Template.Spec.Containers)
		return []any{t.Name, names, images, labels.FormatLabels(t.Template.Labels)}
	},
}
