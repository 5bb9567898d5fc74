momLab.lab(document.getElementById("lab"), JSON.parse(document.getElementById("facts").textContent));
